"""The number format: groups of input channels share a scale and a zero point. NumPy reference.

    w = (q - z) * scale        0 <= q, z < 2**bits        scale fp16, positive

`asymmetric`: the range of a group is [min(w, 0), max(w, 0)], so that 0 is always representable.
`symmetric`: z = 2**(bits - 1); the range is [-max|w|, max|w|].
`awq_edge.quantizer.search.rounding` is the same arithmetic in torch; a test holds the two to equal
bits.

How codes lie in the files of a checkpoint: `awq_edge.model.layouts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Scheme = Literal["asymmetric", "symmetric"]
UInt8 = npt.NDArray[np.uint8]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]

# The smallest positive fp16: a group of zeros, or nearly so, keeps a positive scale.
SMALLEST_SCALE = np.float32(2.0**-24)


@dataclass(frozen=True)
class NumberFormat:
    """bits of a code, input channels of a group, and the scheme."""

    bits: int
    group_size: int
    scheme: Scheme

    def __str__(self) -> str:
        return f"{self.bits}-bit, group {self.group_size}, {self.scheme}"


@dataclass(frozen=True)
class NumberFormats:
    """The number formats of the linears of a model's blocks.

    main: of those that `others` does not name.
    others: by full name ("model.layers.0.mlp.up_proj").
    """

    main: NumberFormat
    others: Mapping[str, NumberFormat] = field(default_factory=dict)

    def of(self, linear: str) -> NumberFormat:
        """The number format of a linear by full name."""
        return self.others.get(linear, self.main)

    def distinct(self) -> tuple[NumberFormat, ...]:
        """Every format once, the main one first."""
        return tuple(dict.fromkeys((self.main, *self.others.values())))


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized linear weight.

    codes: uint8 [out, in]. scales: float16 [out, in / group], or float32 where a checkpoint of
    another tool has scales that float16 cannot hold. zeros: uint8 [out, in / group].
    """

    codes: UInt8
    scales: Float16 | Float32
    zeros: UInt8
    bits: int

    @property
    def group_size(self) -> int:
        return int(self.codes.shape[1] // self.scales.shape[1])


def quantize(
    weight: npt.NDArray[np.floating], bits: int, group_size: int, scheme: Scheme
) -> QuantizedWeight:
    """Round to nearest.

    weight: [out, in], finite, in a multiple of group_size. Raises ValueError on a wrong shape, on
    NaN or inf, and where a scale would overflow fp16.
    """
    out_features, in_features = weight.shape
    if in_features % group_size:
        raise ValueError(f"in_features {in_features} is not a multiple of group_size {group_size}")
    groups = weight.astype(np.float32).reshape(out_features, -1, group_size)
    if not np.isfinite(groups).all():
        raise ValueError("the weight has NaN or inf")
    low = np.minimum(groups.min(axis=2), np.float32(0))
    high = np.maximum(groups.max(axis=2), np.float32(0))
    scales, zeros = scales_and_zeros(low, high, bits, scheme)
    codes = np.rint(groups / scales.astype(np.float32)[:, :, None])
    codes = np.clip(codes + zeros[:, :, None], 0, 2**bits - 1).astype(np.uint8)
    return QuantizedWeight(codes.reshape(out_features, in_features), scales, zeros, bits)


def scales_and_zeros(
    low: Float32, high: Float32, bits: int, scheme: Scheme
) -> tuple[Float16, UInt8]:
    """Scale and zero point of groups that span [low, high], low <= 0 <= high, any shape.

    The scale is rounded to fp16 first and the zero point follows the rounded scale, so that what
    is stored is what was measured.
    """
    levels = 2**bits - 1
    if scheme == "symmetric":
        zero = 2 ** (bits - 1)
        span = np.maximum(-low / np.float32(zero), high / np.float32(levels - zero))
    else:
        span = (high - low) / np.float32(levels)
    with np.errstate(over="ignore"):  # refused below, with the value
        scales = np.maximum(span, SMALLEST_SCALE).astype(np.float16)
    if not np.isfinite(scales).all():
        raise ValueError(f"a scale of {span.max():.3g} overflows fp16")
    if scheme == "symmetric":
        return scales, np.full(scales.shape, zero, dtype=np.uint8)
    zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, levels)
    return scales, zeros.astype(np.uint8)


def dequantize(quantized: QuantizedWeight) -> Float32:
    """The weight that the codes stand for: float32 [out, in]."""
    out_features, in_features = quantized.codes.shape
    codes = quantized.codes.reshape(out_features, -1, quantized.group_size).astype(np.float32)
    zeros = quantized.zeros.astype(np.float32)[:, :, None]
    scales = quantized.scales.astype(np.float32)[:, :, None]
    return ((codes - zeros) * scales).reshape(out_features, in_features)


def check_codes(largest: int, bits: int) -> None:
    """Raise ValueError when a code does not fit."""
    if largest >= 2**bits:
        raise ValueError(f"code {largest} does not fit {bits} bits")
