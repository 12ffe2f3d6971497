"""Calibration text that the model writes itself, where that is affordable.

A model's own samples are of every language and domain that it knows, in the shares in which it
knows them (S. Williams et al., "Self-calibration for Language Model Quantization and Pruning",
arXiv 2410.17170). They cost a forward pass of the whole model a token, and memory for all of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.input_files import parse_json, read_text
from awq_edge.device.system_memory import read_system_memory
from awq_edge.device.torch_device import has_bfloat16_products
from awq_edge.errors import AwqEdgeError
from awq_edge.model.archs import Decoder
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.calibration.scripts import Script, conversations, end_ids, own_scripts
from awq_edge.runtime.tokenizer import Tokenizer
from awq_edge.units import size_text

# The one place that decides what is affordable. Seconds that drawing may take, by estimate; what a
# thread of a CPU computes, floating-point operations a second (the slowest that was seen, with all
# cores busy); and the cost of a block or an expert of its own in a step, however few rows it has.
_BUDGET_SECONDS = 360.0
_LEAST_SHARE = 1 / 8  # of the samples: for fewer the whole model is not loaded
_THREAD_RATES = {torch.bfloat16: 30e9, torch.float32: 12e9}
_CALL_SECONDS = 4e-4
# Shares of the memory that the model may take, and with keys, values and logits. On a CPU samples
# that are drawn at a time take no more than a few blocks would.
_WEIGHTS_SHARE, _WHOLE_SHARE = 0.6, 0.8
_CPU_STATE_BYTES = 512 << 20
_LOGIT_BYTES = 16  # of a token's logit: float32, its exponential, and copies
_LARGEST_FILE = 1 << 30

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cost:
    """What drawing takes, by estimate. seconds: a sample. memory: bytes of the device. weights:
    bytes of the whole model. most: samples at a time that the memory holds, 0 where none."""

    seconds: float
    memory: int
    weights: int
    most: int


@dataclass(frozen=True)
class OwnText:
    """The samples that a model is to write. length: tokens of one. batch: at a time."""

    checkpoint: Checkpoint
    scripts: tuple[Script, ...]
    ends: frozenset[int]
    length: int
    seed: int
    batch: int
    device: torch.device
    dtype: torch.dtype

    @property
    def conversations(self) -> int:
        return conversations(self.scripts)

    @property
    def key(self) -> str:
        """sha256 over all that the samples depend on beside weights, versions and machine."""
        facts = [
            [[s.opening, s.breaks, s.shortest] for s in self.scripts],
            sorted(self.ends),
            [self.length, self.seed, self.batch, str(self.dtype)],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def ids(self, file: Path, progress: Progress | None = None) -> npt.NDArray[np.int64]:
        """The samples, int64 [samples, length]: read from the file where an earlier run of this key
        has kept them, else drawn and kept there.

        progress: called with the tokens of all samples that are done, and their number.
        Raises ModelError where the model cannot be built, or its logits are not finite.
        """
        kept = _kept(file, len(self.scripts), self.length, self.checkpoint.decoder.vocab_size)
        if kept is not None:
            return kept
        from awq_edge.quantizer.blocks.runner import BlockRunner
        from awq_edge.quantizer.calibration.sampling import draw

        tokenizer = Tokenizer(self.checkpoint.path)
        total = len(self.scripts) * self.length
        with BlockRunner(self.checkpoint, self.device, self.dtype).whole() as model:
            ids = draw(
                model,
                self.scripts,
                self.ends,
                device=self.device,
                length=self.length,
                seed=self.seed,
                batch=self.batch,
                vocab_size=min(tokenizer.vocab_size, self.checkpoint.decoder.vocab_size),
                progress=lambda done: None if progress is None else progress(done, total),
            )
        _keep(file, ids, self.scripts, tokenizer)
        return ids


def own_text(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    device: torch.device,
    *,
    samples: int,
    length: int,
    seed: int,
) -> OwnText | None:
    """The samples, to be drawn later; None where there are none to draw."""
    if samples == 0:
        return None
    cost = drawing_cost(checkpoint.decoder, device, length, samples)
    batches = math.ceil(samples / max(cost.most, 1))
    return OwnText(
        checkpoint=checkpoint,
        scripts=own_scripts(tokenizer, checkpoint.decoder, samples=samples, seed=seed),
        ends=end_ids(tokenizer, checkpoint.decoder),
        length=length,
        seed=seed,
        batch=math.ceil(samples / batches),
        device=device,
        dtype=_dtype(device),
    )


def drawing_cost(decoder: Decoder, device: torch.device, length: int, samples: int) -> Cost:
    """The cost of drawing samples of so many tokens."""
    dtype = _dtype(device)
    shapes = decoder.weight_shapes()
    parameters = sum(math.prod(shape) for shape in shapes.values())
    weights = parameters * dtype.itemsize
    cache = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_size * dtype.itemsize
    state = length * cache + decoder.vocab_size * _LOGIT_BYTES
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        room = int(_WHOLE_SHARE * memory) - weights
    else:
        system = read_system_memory()
        memory = weights * 4 if system is None else system.total
        room = min(_CPU_STATE_BYTES, int(_WHOLE_SHARE * memory) - weights)
    most = min(samples, max(room // state, 0)) if weights <= _WEIGHTS_SHARE * memory else 0
    seconds = 0.0
    if device.type == "cpu":
        read = math.prod(shapes[f"{decoder.architecture.embedding}.weight"])
        operations = 2 * (parameters if decoder.tied_embeddings else parameters - read)
        seconds = length * operations / (_THREAD_RATES[dtype] * torch.get_num_threads())
    calls = sum(
        1 + (decoder.moe.num_experts if decoder.moe is not None and decoder.has_experts(i) else 0)
        for i in range(decoder.num_layers)
    )
    seconds += length * calls * _CALL_SECONDS / max(most, 1)
    return Cost(seconds, memory, weights, most)


def too_large(cost: Cost) -> str | None:
    """Why the model cannot be loaded whole, in words; None where it can."""
    if cost.most > 0:
        return None
    return (
        f"the whole model takes {size_text(cost.weights)}, which with what it writes is too much "
        f"for a device of {size_text(cost.memory)}"
    )


def affordable_samples(
    decoder: Decoder, device: torch.device, *, samples: int, length: int
) -> tuple[int, str | None]:
    """How many of the samples the model itself should write, and why not all, in words."""
    cost = drawing_cost(decoder, device, length, samples)
    if (why := too_large(cost)) is not None:
        return 0, why
    count = min(samples, int(_BUDGET_SECONDS / cost.seconds))
    if count == samples:
        return samples, None
    where = "" if device.type == "cuda" else f" with {torch.get_num_threads()} thread(s)"
    return (count if count >= _LEAST_SHARE * samples else 0), (
        f"all of them would take about {samples * cost.seconds / 60:.0f} minutes{where}, of which "
        f"{_BUDGET_SECONDS / 60:.0f} are allowed (--calibration self takes them)"
    )


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if has_bfloat16_products(device) else torch.float32


def _keep(
    file: Path, ids: npt.NDArray[np.int64], scripts: tuple[Script, ...], tokenizer: Tokenizer
) -> None:
    """Write the samples as JSON lines: the text to read, the ids to be exact."""
    with atomic_file(file) as work, open(work, "w", encoding="utf-8") as out:
        for row, script in zip(ids.tolist(), scripts, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=False)
            kind = "conversation" if script.is_conversation else "document"
            out.write(json.dumps({"kind": kind, "text": text, "ids": row}, ensure_ascii=False))
            out.write("\n")


def _kept(file: Path, samples: int, length: int, vocab_size: int) -> npt.NDArray[np.int64] | None:
    """The samples that a run has kept; None where there are none, or not these."""
    try:
        lines = read_text(file, limit=_LARGEST_FILE).rstrip("\n").split("\n")
        ids = np.array([parse_json(line, str(file))["ids"] for line in lines], dtype=np.int64)
    except (AwqEdgeError, KeyError, ValueError, TypeError):
        return None
    if ids.shape != (samples, length) or ids.min() < 0 or ids.max() >= vocab_size:
        return None
    return ids
