"""Reading a checkpoint: a Hugging Face model, unquantized or in the AutoAWQ gemm layout.

Layout of a quantized linear NAME (source: AutoAWQ's `gemm` version, read by transformers, vLLM):

    NAME.qweight  int32   [in, out / 8]           4-bit codes, order drawn in `awq_edge.w4a16`
    NAME.qzeros   int32   [in / group, out / 8]   zero points, same order, no off-by-one
    NAME.scales   float16 [in / group, out]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.archs import Decoder, Linear, decoder_from_config
from awq_edge.errors import ModelError
from awq_edge.fused_experts import split_fused_experts
from awq_edge.model_files import ModelFiles, TensorEntry
from awq_edge.w4a16 import GEMM_LANES, QuantizedWeight, Scheme, unpack_gemm

Array = npt.NDArray[Any]

# Buffers that some checkpoints carry and no decoder reads.
_IGNORED_SUFFIXES = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".embeddings.position_ids",
)


@dataclass(frozen=True)
class QuantizationConfig:
    """quantization_config of config.json, AutoAWQ's keys. scheme: "symmetric" where awq-edge wrote
    so; other tools' checkpoints count as asymmetric, whose arithmetic covers both."""

    bits: int
    group_size: int
    scheme: Scheme
    method: str


class Checkpoint:
    """A model directory whose every weight name and shape has been checked against its config."""

    def __init__(
        self, files: ModelFiles, decoder: Decoder, quantization: QuantizationConfig | None
    ) -> None:
        self.files = files
        self.decoder = decoder
        self.quantization = quantization

    @property
    def path(self) -> Path:
        return self.files.path

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a model directory.

        Raises ModelError on an unknown architecture or quantization format, and naming any weight
        that is missing, unexpected or misshapen.
        """
        files = ModelFiles(path)
        decoder = decoder_from_config(files.config)
        files.entries = split_fused_experts(_names_on_disk(files, decoder), decoder)
        checkpoint = cls(files, decoder, _quantization_config(files))
        checkpoint._check_names_and_shapes()
        return checkpoint

    @property
    def kept_names(self) -> list[str]:
        """Names of what is kept as it is: the vision tower and projector, where there are some."""
        vision = self.decoder.architecture.vision
        if vision is None:
            return []
        return [
            name
            for name in self.files.entries
            if vision.keeps(name) and not name.endswith(_IGNORED_SUFFIXES)
        ]

    def is_quantized(self, name: str) -> bool:
        """Whether the linear of this full name ("model.layers.0.mlp.up_proj") is quantized."""
        return f"{name}.qweight" in self.files

    def dense(self, name: str) -> Array:
        """An unquantized tensor by full name, bfloat16 as float32, other dtypes as stored."""
        return self.files.read(name)

    def quantized(self, name: str) -> QuantizedWeight:
        """The codes, scales and zeros of a quantized linear by full name.

        Raises ModelError when its scales are not finite.
        """
        assert self.quantization is not None
        scales = np.ascontiguousarray(self.files.read(f"{name}.scales").T)
        if not np.isfinite(scales).all():
            raise ModelError(f"{self.path}: '{name}.scales' has NaN or inf")
        return QuantizedWeight(
            codes=unpack_gemm(self.files.read(f"{name}.qweight")),
            scales=scales.astype(np.float16, copy=False),
            zeros=unpack_gemm(self.files.read(f"{name}.qzeros")),
            bits=self.quantization.bits,
        )

    def bias(self, layer: int, linear: Linear) -> Array | None:
        """The bias of a block's linear [out], or None."""
        if not linear.bias:
            return None
        return self.files.read(f"{self.decoder.layer_prefix(layer)}.{linear.name}.bias")

    def _check_names_and_shapes(self) -> None:
        expected = self.decoder.weight_shapes()
        if self.quantization is not None:
            expected = self._quantized_shapes(expected)
        for name, shape in expected.items():
            entry = self.files.entries.get(name)
            if entry is None:
                raise ModelError(f"{self.path}: weight '{name}' of shape {list(shape)} is missing")
            if entry.shape != shape:
                raise ModelError(
                    f"{self.path}: weight '{name}' has shape {list(entry.shape)}, "
                    f"config.json implies {list(shape)}"
                )
        vision = self.decoder.architecture.vision
        for part in () if vision is None else vision.parts:
            if not any(name.startswith(f"{part}.") for name in self.files.entries):
                raise ModelError(f"{self.path}: the weights of '{part}' are missing")
        lm_head = f"{self.decoder.architecture.lm_head}.weight"
        for name in self.files.entries:
            tied_copy = name == lm_head and self.decoder.tied_embeddings
            is_kept = vision is not None and vision.keeps(name)
            if is_kept or name.endswith(_IGNORED_SUFFIXES):
                continue
            if name not in expected and not tied_copy:
                raise ModelError(
                    f"{self.path}: unexpected weight '{name}' for model_type "
                    f"'{self.decoder.model_type}'"
                )

    def _quantized_shapes(self, dense: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        assert self.quantization is not None
        group = self.quantization.group_size
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in dense.items():
            linear = name.removesuffix(".weight")
            if not self.is_quantized(linear):
                shapes[name] = shape
                continue
            out_features, in_features = shape
            if in_features % group or out_features % GEMM_LANES:
                raise ModelError(
                    f"{self.path}: '{linear}' of shape {list(shape)} cannot be quantized in "
                    f"groups of {group}"
                )
            shapes[f"{linear}.qweight"] = (in_features, out_features // GEMM_LANES)
            shapes[f"{linear}.qzeros"] = (in_features // group, out_features // GEMM_LANES)
            shapes[f"{linear}.scales"] = (in_features // group, out_features)
        return shapes


def _names_on_disk(files: ModelFiles, decoder: Decoder) -> dict[str, TensorEntry]:
    """The entries of a directory; names as transformers has them in memory in their form on disk.

    transformers 5 writes the former where it is told to.
    """
    vision = decoder.architecture.vision
    if vision is None:
        return files.entries
    found: dict[str, TensorEntry] = {}
    for name, entry in files.entries.items():
        on_disk = vision.name_on_disk(name)
        if on_disk in found:
            raise ModelError(f"{files.path}: weight '{on_disk}' is there twice, also as '{name}'")
        found[on_disk] = entry
    return dict(sorted(found.items()))


def _quantization_config(files: ModelFiles) -> QuantizationConfig | None:
    config = files.config.get("quantization_config")
    if config is None:
        return None
    method = config.get("quant_method")
    version = str(config.get("version", "gemm")).lower()
    if method != "awq" or version != "gemm":
        raise ModelError(
            f"{files.path}: quantization_config has quant_method '{method}', version '{version}'; "
            "supported: awq, gemm (export the unquantized model instead)"
        )
    bits = config.get("bits", config.get("w_bit"))
    group_size = config.get("group_size", config.get("q_group_size"))
    if bits != 4:
        raise ModelError(f"{files.path}: quantization_config has bits {bits}; supported: 4")
    if not isinstance(group_size, int) or group_size <= 0 or group_size % 16:
        raise ModelError(
            f"{files.path}: quantization_config has group_size {group_size}; supported: 32, 64, 128"
        )
    details = config.get("awq_edge", {})
    return QuantizationConfig(
        bits=4,
        group_size=group_size,
        scheme=details.get("scheme", "asymmetric"),
        method=details.get("method", "awq"),
    )
