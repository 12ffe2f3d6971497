"""From a checkpoint to a GGUF file: check, plan, write."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as GgufType
from gguf import GGUFWriter

from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.gguf_header import is_own_gguf
from awq_edge.artifacts.outputs import check_file_output, require_disk
from awq_edge.errors import ConfigError
from awq_edge.exporter.gguf.blocks import obstacle
from awq_edge.exporter.gguf.checks import check_decoder, llama_cpp_of
from awq_edge.exporter.gguf.metadata import add_metadata
from awq_edge.exporter.gguf.tensors import Tensor, TensorPlan
from awq_edge.exporter.gguf.vocabulary import Vocabulary, read_vocabulary
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.lm_head import UNQUANTIZED
from awq_edge.model.source import verify_weights
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.recipe.recipes import Recipe

Observer = Callable[[int, int, str], None]
_FLAG = "--gguf"
_UINT8 = np.dtype(np.uint8)  # tells the writer that shapes count bytes
_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_TOKENS = {"</s>", "<unk>", "<s>", "<|endoftext|>"}
_HEADER_BYTES = 1 << 16  # of keys and tensors, beside the vocabulary
_TOKEN_BYTES = 64  # of a token with its merges, about


@dataclass(frozen=True)
class GgufFile:
    """A file that was written.

    path: of it. size: bytes. architecture: llama.cpp's name. weights: how many of each type.
    bits_per_weight: of the whole file. notes: what differs from the checkpoint, in sentences.
    """

    path: Path
    size: int
    architecture: str
    weights: dict[str, int]
    notes: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size / sum(self.weights.values())


@dataclass(frozen=True)
class GgufPlan:
    """A file that can be written. checkpoint: what of. tensors: in their order."""

    checkpoint: Checkpoint
    tensors: tuple[Tensor, ...]
    vocabulary: Vocabulary
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """About the bytes of the file."""
        vocabulary = _TOKEN_BYTES * len(self.vocabulary.tokens)
        return sum(tensor.size for tensor in self.tensors) + vocabulary + _HEADER_BYTES


def check_gguf_output(
    out: Path, *, overwrite: bool, inputs: Mapping[str, str | Path | None]
) -> None:
    """Raise ConfigError for a file that could not, or must not, be written at the end. inputs: what
    the command reads, by the words for it."""
    check_file_output(out, overwrite=overwrite, inputs=inputs, is_own=is_own_gguf, flag=_FLAG)


def plan_gguf(checkpoint: Checkpoint, output_bits: int = UNQUANTIZED) -> GgufPlan:
    """All of a file but its bytes.

    output_bits: of an output layer that the checkpoint has unquantized, and of an embedding that is
    one: 4 or 8, or 16 to keep it.
    Raises ModelError naming what llama.cpp lacks: the architecture, a number format, a step of the
    tokenizer.
    """
    notes = check_decoder(checkpoint)
    tensors = TensorPlan(checkpoint, output_bits).tensors()
    vocabulary = read_vocabulary(checkpoint.path, checkpoint.decoder)
    return GgufPlan(checkpoint, tuple(tensors), vocabulary, (*notes, *vocabulary.notes))


def check_gguf(model: Checkpoint, recipe: Recipe) -> int:
    """About the bytes of the file that a model which is not quantized yet will become.

    Raises as `plan_gguf`, so that it is known before a model is quantized.
    """
    plan = plan_gguf(model)
    quantization = recipe.quantization
    number_format = NumberFormat(quantization.bits, quantization.group_size, quantization.scheme)
    problem = obstacle(number_format)
    if problem is not None:
        raise ConfigError(f"--gguf: weights of {number_format}: {problem}")
    return plan.size


def write_gguf(
    plan: GgufPlan,
    out: Path,
    *,
    model_name: str,
    overwrite: bool = False,
    verify: bool = True,
    observer: Observer | None = None,
) -> GgufFile:
    """Write a file, whole or not at all.

    model_name: general.name. verify: compare the weights with the hashes in the checkpoint's
    report. observer: called with the megabytes written, their number, and a word.
    Raises ConfigError (an `out` that exists), ModelError (a weight), ResourceError (disk space).
    """
    checkpoint = plan.checkpoint
    check_gguf_output(out, overwrite=overwrite, inputs={"MODEL": checkpoint.path})
    require_disk(out.parent, plan.size, f"{out.name} of {model_name}", flag=_FLAG)
    if verify:
        verify_weights(checkpoint.files)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as work, _writer(work, checkpoint) as writer:
        name = _loadable_name(model_name, plan.vocabulary)
        add_metadata(writer, checkpoint, name, _main_type(plan.tensors))
        plan.vocabulary.add_to(writer)
        for tensor in plan.tensors:
            shape = (*tensor.shape[:-1], tensor.row_bytes)
            writer.add_tensor_info(tensor.name, shape, _UINT8, tensor.size, tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total, done = sum(tensor.size for tensor in plan.tensors), 0
        for tensor in plan.tensors:
            writer.write_tensor_data(tensor.load())
            done += tensor.size
            if observer is not None:
                observer(done // 1_000_000, total // 1_000_000, "weights, MB")
    return GgufFile(
        path=out,
        size=out.stat().st_size,
        architecture=llama_cpp_of(checkpoint.decoder).name,
        weights=_weights(plan.tensors),
        notes=plan.notes,
    )


def _loadable_name(name: str, vocabulary: Vocabulary) -> str:
    """The name; "phi 3" in the place of "phi3" and "phi-3", by which llama.cpp looks for tokens of
    Phi-3 and loads no file without them, where these are not there."""
    is_taken = any(part in name.lower() for part in _PHI3_NAMES)
    if is_taken and not _PHI3_TOKENS <= set(vocabulary.tokens):
        return re.sub("(?i)(phi)-?3", r"\1 3", name)
    return name


@contextlib.contextmanager
def _writer(path: Path, checkpoint: Checkpoint) -> Iterator[GGUFWriter]:
    writer = GGUFWriter(path, llama_cpp_of(checkpoint.decoder).name)
    try:
        yield writer
    finally:
        writer.close()


def _weights(tensors: tuple[Tensor, ...]) -> dict[str, int]:
    """Weights of each type, the most first."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        rows = tensor.size // tensor.row_bytes
        counts[tensor.type.name] = counts.get(tensor.type.name, 0) + rows * tensor.shape[-1]
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _main_type(tensors: tuple[Tensor, ...]) -> GgufType:
    """The type of most weights of the blocks."""
    blocks = tuple(tensor for tensor in tensors if tensor.name.startswith("blk."))
    return GgufType[next(iter(_weights(blocks)))]
