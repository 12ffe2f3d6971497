"""The number format: groups of input channels share a scale and a zero point. NumPy reference.

    w = (q - z) * scale        0 <= q, z < 2**bits        scale fp16, positive

`asymmetric`: the range of a group is [min(w, 0), max(w, 0)], so that 0 is always representable.
`symmetric`: z = 2**(bits - 1); the range is [-max|w|, max|w|].
`awq_edge.quantizer.rounding` is the same arithmetic in torch; a test holds the two to equal bits.

The AutoAWQ `gemm` layout packs eight 4-bit codes of neighbouring output channels into an int32.
Bits 4i..4i+3 of word c hold output channel 8c + GEMM_ORDER[i]:

    bit   31..28 27..24 23..20 19..16 15..12 11..8  7..4   3..0
    8c +     7      5      3      1      6     4     2      0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Scheme = Literal["asymmetric", "symmetric"]
UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]

GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GEMM_LANES = 8  # 4-bit codes in an int32
# The smallest positive fp16: a group of zeros, or nearly so, keeps a positive scale.
SMALLEST_SCALE = np.float32(2.0**-24)


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized linear weight.

    codes: uint8 [out, in]. scales: float16 [out, in / group]. zeros: uint8 [out, in / group].
    """

    codes: UInt8
    scales: Float16
    zeros: UInt8
    bits: int

    @property
    def group_size(self) -> int:
        return int(self.codes.shape[1] // self.scales.shape[1])


def gemm_obstacle(out_features: int, in_features: int, group_size: int) -> str | None:
    """Why a linear cannot be stored in the AutoAWQ gemm layout, or None if it can."""
    if in_features % group_size:
        return f"in_features {in_features} is not a multiple of group_size {group_size}"
    if out_features % GEMM_LANES:
        return f"out_features {out_features} is not a multiple of {GEMM_LANES}"
    return None


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


def pack_gemm(codes: UInt8) -> Int32:
    """Pack codes [out, columns] (columns: in, or in / group for zeros) to int32 [columns, out/8].

    The drawing at the top of this module is the layout. Raises ValueError when out is no multiple
    of 8 or a code does not fit 4 bits.
    """
    if codes.shape[0] % GEMM_LANES:
        raise ValueError(f"out_features {codes.shape[0]} is not a multiple of {GEMM_LANES}")
    if codes.size and int(codes.max()) > 15:
        raise ValueError(f"code {int(codes.max())} does not fit 4 bits")
    lanes = np.ascontiguousarray(codes.T).reshape(codes.shape[1], -1, GEMM_LANES)
    # Nibbles in memory order make bytes, and four bytes a little-endian word.
    ordered = lanes[:, :, GEMM_ORDER]
    packed = ordered[:, :, 0::2] | (ordered[:, :, 1::2] << 4)
    return np.ascontiguousarray(packed).view("<i4")[:, :, 0]


def unpack_gemm(packed: Int32) -> UInt8:
    """The inverse of `pack_gemm`: int32 [columns, out/8] to uint8 codes [out, columns]."""
    columns = packed.shape[0]
    pairs = np.ascontiguousarray(packed).view(np.uint8).reshape(columns, -1, 4)
    lanes = np.empty((columns, pairs.shape[1], GEMM_LANES), dtype=np.uint8)
    lanes[:, :, GEMM_ORDER[0::2]] = pairs & 15
    lanes[:, :, GEMM_ORDER[1::2]] = pairs >> 4
    return np.ascontiguousarray(lanes.reshape(columns, -1).T)
