"""Writing a checkpoint in the AutoAWQ gemm layout, shard by shard.

The layout is in `awq_edge.checkpoint`. Tensors that are not quantized keep 16 bits: bfloat16 stays
bfloat16, anything else becomes float16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from awq_edge.artifacts import write_json
from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ModelError
from awq_edge.quantizer.resume import save_tensors
from awq_edge.quantizer.rounding import NumberFormat, Rounded
from awq_edge.w4a16 import pack_gemm, unpack_gemm

_SHARD_BYTES = 1 << 30  # a shard is in memory until it is written


class CheckpointWriter:
    """Collects tensors and writes a shard whenever enough have come."""

    def __init__(self, directory: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add one tensor as it is to be stored."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous().cpu()
        self._pending_bytes += size
        self._total += size

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
            save_tensors(self._pending, path)
            self._shards.append(list(self._pending))
            self._pending = {}
            self._pending_bytes = 0


def _temporary(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def quantized_tensors(name: str, rounded: Rounded) -> dict[str, torch.Tensor]:
    """The stored tensors of a quantized linear. name: without ".weight"."""
    return {
        f"{name}.qweight": _packed(rounded.codes),
        f"{name}.qzeros": _packed(rounded.zeros),
        f"{name}.scales": rounded.scales.T.contiguous().cpu(),
    }


def restored(name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the stored tensors of a linear stand for: float32 [out, in]."""
    rounded = Rounded(
        codes=torch.from_numpy(unpack_gemm(tensors[f"{name}.qweight"].numpy())),
        scales=tensors[f"{name}.scales"].T.contiguous(),
        zeros=torch.from_numpy(unpack_gemm(tensors[f"{name}.qzeros"].numpy())),
    )
    return rounded.dequantize()


def _packed(codes: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(pack_gemm(codes.cpu().numpy()).astype(np.int32, copy=False))


def storage_dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """The dtype that an unquantized tensor has in the new checkpoint."""
    is_bfloat16 = checkpoint.files.entries[name].dtype == "BF16"
    return torch.bfloat16 if is_bfloat16 else torch.float16


def narrowed(model: str, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float32 tensor in the dtype that it is stored in, on the CPU. model, name: for errors.

    Raises ModelError where `dtype` cannot hold it.
    """
    narrow = tensor.to(dtype).contiguous().cpu()
    if not torch.isfinite(narrow).all():
        raise ModelError(
            f"{model}: '{name}' has values up to {tensor.abs().max().item():.3g}, NaN or "
            "inf, which float16 cannot hold; convert the model to bfloat16 first"
        )
    return narrow


def stored(checkpoint: Checkpoint, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A float32 tensor in the dtype that it is stored in. name: in the source checkpoint.

    Raises ModelError where float16 cannot hold it.
    """
    return narrowed(str(checkpoint.path), name, tensor, storage_dtype(checkpoint, name))


def tensors_outside_blocks(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Embedding, final norm and output layer, vision tower and projector, one at a time, as they
    are stored."""
    layers = f"{checkpoint.decoder.architecture.layers}."
    for name in checkpoint.decoder.weight_shapes():
        if not name.startswith(layers):
            array = checkpoint.dense(name).astype(np.float32, copy=False)
            yield name, stored(checkpoint, name, torch.from_numpy(array))
    for name in checkpoint.kept_names:
        array = checkpoint.dense(name).astype(np.float32, copy=False)
        yield name, stored(checkpoint, name, torch.from_numpy(array))


def write_config(
    checkpoint: Checkpoint,
    directory: Path,
    number_format: NumberFormat,
    method: str,
    unquantized: list[str],
) -> None:
    """config.json with quantization_config, and the tokenizer files.

    zero_point is true for the symmetric scheme too (all zeros are 8): readers that take it for
    false expect another layout.
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
    config["quantization_config"] = {
        "quant_method": "awq",
        "bits": number_format.bits,
        "group_size": number_format.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [
            "lm_head",
            *checkpoint.decoder.unquantized_modules(),
            *unquantized,
        ],
        "awq_edge": {"scheme": number_format.scheme, "method": method},
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in checkpoint.files.tokenizer_files():
        shutil.copyfile(file, directory / file.name)


def checkpoint_bytes(checkpoint: Checkpoint, number_format: NumberFormat) -> int:
    """About the bytes that the new checkpoint takes, for the check of disk space."""
    total = 0
    for name, shape in checkpoint.decoder.weight_shapes().items():
        count = int(np.prod(shape))
        if name.startswith(checkpoint.decoder.architecture.layers) and len(shape) == 2:
            total += count * number_format.bits // 8 + 3 * count // number_format.group_size
        else:
            total += 2 * count
    for name in checkpoint.kept_names:
        total += 2 * int(np.prod(checkpoint.files.entries[name].shape))
    return total
