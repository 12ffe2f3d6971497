"""Writing a checkpoint in one of `awq_edge.model.layouts`, shard by shard.

Tensors that are not quantized keep 16 bits: bfloat16 stays
bfloat16, anything else becomes float16.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from awq_edge.artifacts.directories import write_json
from awq_edge.errors import ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import CheckpointFormats, Layout
from awq_edge.model.torch_tensors import float32_pieces, is_finite
from awq_edge.model.w4a16 import dequantize
from awq_edge.quantizer.checkpoint.safetensors_stream import StreamedTensor, write_safetensors
from awq_edge.quantizer.search.rounding import NumberFormat, NumberFormats, Rounded

_SHARD_BYTES = 1 << 30


class CheckpointWriter:
    """Notes tensors and writes a shard whenever enough have come."""

    def __init__(self, directory: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._pending: dict[str, StreamedTensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: StreamedTensor) -> None:
        """Add one tensor as it is to be stored. It is read when its shard is written."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor
        self._pending_bytes += tensor.nbytes
        self._total += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, give the shards their names, write the index where there are two."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            (self._directory / _temporary(0)).rename(self._directory / "model.safetensors")
            return
        weight_map = {}
        for index, names in enumerate(self._shards):
            final = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            (self._directory / _temporary(index)).rename(self._directory / final)
            weight_map.update(dict.fromkeys(names, final))
        write_json(
            self._directory / "model.safetensors.index.json",
            {
                "metadata": {"total_size": self._total},
                "weight_map": dict(sorted(weight_map.items())),
            },
        )

    def _flush(self) -> None:
        if self._pending:
            path = self._directory / _temporary(len(self._shards))
            write_safetensors(self._pending, path)
            self._shards.append(list(self._pending))
            self._pending = {}
            self._pending_bytes = 0


def _temporary(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def quantized_tensors(
    layout: Layout, name: str, rounded: Rounded, number_format: NumberFormat
) -> dict[str, torch.Tensor]:
    """The stored tensors of a quantized linear, packed where its codes are, on the CPU.

    name: without ".weight".
    """
    packed = layout.pack(name, rounded.codes, rounded.scales, rounded.zeros, number_format)
    return {full: tensor.cpu() for full, tensor in packed.items()}


def restored(
    layout: Layout, name: str, tensors: Mapping[str, torch.Tensor], number_format: NumberFormat
) -> torch.Tensor:
    """The weight that the stored tensors of a linear stand for: float32 [out, in]."""
    linear = layout.read(name, number_format, lambda full: tensors[full].numpy())
    return torch.from_numpy(dequantize(linear))


def storage_dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """The dtype that an unquantized tensor has in the new checkpoint."""
    is_bfloat16 = checkpoint.files.entries[name].dtype == "BF16"
    return torch.bfloat16 if is_bfloat16 else torch.float16


def require_finite(model: str, name: str, tensor: torch.Tensor) -> None:
    """Raise ModelError for a weight with NaN or inf, whose file is damaged."""
    if not is_finite(tensor):
        raise ModelError(
            f"{model}: '{name}' has NaN or inf; the file is damaged, or the model was saved after "
            "its training failed: fetch it again, or take an earlier state"
        )


def require_finite_outside_blocks(checkpoint: Checkpoint) -> None:
    """Raise ModelError for a tensor outside the blocks with NaN or inf: embedding, final norm,
    output layer, vision tower. Those of a block are looked at when it is read."""
    layers = f"{checkpoint.decoder.architecture.layers}."
    names = [n for n in checkpoint.decoder.weight_shapes() if not n.startswith(layers)]
    for name in (*names, *checkpoint.kept_names):
        for piece in float32_pieces(checkpoint.files, name):
            require_finite(str(checkpoint.path), name, piece)


def narrowed(model: str, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float32 tensor in the dtype that it is stored in, on the CPU. model, name: for errors.

    Raises ModelError where `dtype` cannot hold it.
    """
    narrow = tensor.to(dtype).contiguous().cpu()
    if not is_finite(narrow):
        require_finite(model, name, tensor)
        raise ModelError(
            f"{model}: '{name}' has values up to {tensor.abs().max().item():.3g}, which float16 "
            "cannot hold; convert the model to bfloat16 first"
        )
    return narrow


def stored(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A float32 tensor in the dtype that it is stored in. name: in the source checkpoint.

    Raises ModelError where float16 cannot hold it.
    """
    return narrowed(str(checkpoint.path), name, tensor, storage_dtype(checkpoint, name))


def tensors_outside_blocks(
    checkpoint: Checkpoint, replaced: Collection[str] = ()
) -> Iterator[tuple[str, StreamedTensor]]:
    """Embedding, final norm and output layer, vision tower and projector, as they are stored.

    replaced: full names that are written otherwise.
    """
    layers = f"{checkpoint.decoder.architecture.layers}."
    names = [
        name
        for name in checkpoint.decoder.weight_shapes()
        if not name.startswith(layers) and name not in replaced
    ]
    for name in (*names, *checkpoint.kept_names):
        is_bfloat16 = storage_dtype(checkpoint, name) == torch.bfloat16
        yield (
            name,
            StreamedTensor(
                "BF16" if is_bfloat16 else "F16",
                checkpoint.files.entries[name].shape,
                functools.partial(_stored_pieces, checkpoint, name),
            ),
        )


def _stored_pieces(checkpoint: Checkpoint, name: str) -> Iterator[np.ndarray[Any, Any]]:
    """The bits of a tensor as it is stored, some rows at a time."""
    for piece in float32_pieces(checkpoint.files, name):
        yield stored(checkpoint, name, piece).view(torch.int16).numpy()


def checkpoint_formats(
    checkpoint: Checkpoint,
    number_formats: NumberFormats,
    lm_head: NumberFormat | None,
    unquantized: Collection[str],
    method: str,
) -> CheckpointFormats:
    """The formats of the new checkpoint.

    number_formats: of the linears of blocks. lm_head: None for 16 bits. unquantized: linears by
    full name that stay in 16 bits.
    """
    decoder = checkpoint.decoder
    head = decoder.architecture.lm_head
    linears = [
        f"{decoder.layer_prefix(layer)}.{linear.name}"
        for layer in range(decoder.num_layers)
        for linear in decoder.linears(layer)
    ]
    quantized = {name: number_formats.of(name) for name in linears if name not in unquantized}
    if lm_head is not None:
        quantized[head] = lm_head
    heads = () if head in quantized else (head,)
    blocks = [name for name in linears if name in unquantized]
    dense = [*heads, *blocks]
    vision = decoder.architecture.vision
    aliases = {} if vision is None else {n: vision.name_in_memory(n) for n in (*quantized, *dense)}
    return CheckpointFormats(
        number_formats.main,
        quantized,
        dense,
        method,
        kept=decoder.unquantized_modules(),
        aliases={name: other for name, other in aliases.items() if other != name},
    )


def write_config(
    checkpoint: Checkpoint, directory: Path, layout: Layout, formats: CheckpointFormats
) -> None:
    """config.json with quantization_config, and the tokenizer files.

    A quantized output layer is a weight of its own: tie_word_embeddings becomes false.
    """
    config: dict[str, Any] = dict(checkpoint.files.config)
    kinds = {entry.dtype for entry in checkpoint.files.entries.values()}
    config.pop("torch_dtype", None)
    config["dtype"] = "bfloat16" if "BF16" in kinds else "float16"
    for key in ("text_config", "vision_config"):  # of a vision-language model
        part = config.get(key)
        if isinstance(part, dict) and ("dtype" in part or "torch_dtype" in part):
            part = {name: value for name, value in part.items() if name != "torch_dtype"}
            config[key] = {**part, "dtype": config["dtype"]}
    if checkpoint.decoder.architecture.lm_head in formats.quantized:
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    config["quantization_config"] = layout.make_config(formats)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in checkpoint.files.tokenizer_files():
        shutil.copyfile(file, directory / file.name)


def checkpoint_bytes(checkpoint: Checkpoint, formats: NumberFormats, lm_head_bits: int) -> int:
    """About the bytes that the new checkpoint takes, for the check of disk space."""
    total = checkpoint.files.small_bytes()
    if checkpoint.decoder.tied_embeddings and lm_head_bits < 16:  # then stored beside it
        head = checkpoint.decoder.vocab_size * checkpoint.decoder.hidden_size
        total += head * lm_head_bits // 8 + 3 * head // formats.main.group_size
    for name, shape in checkpoint.decoder.weight_shapes().items():
        count = int(np.prod(shape))
        if name.startswith(checkpoint.decoder.architecture.layers) and len(shape) == 2:
            number_format = formats.of(name.removesuffix(".weight"))
            total += count * number_format.bits // 8 + 3 * count // number_format.group_size
        else:
            total += 2 * count
    for name in checkpoint.kept_names:
        total += 2 * int(np.prod(checkpoint.files.entries[name].shape))
    return total
