"""Blocks of GGUF's number formats: 32 weights of a row that share a scale.

    Q4_0   w = d (q - 8)    float16 d, 16 bytes of codes             4.5 bits a weight
    Q4_1   w = d q + m      float16 d and m, 16 bytes of codes       5.0
    Q8_0   w = d q          float16 d, 32 bytes, q from -128 to 127  8.5

Byte i of 4-bit codes has weight i of the block in its low and weight i + 16 in its high bits.
Source: llama.cpp's ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as GgufType

from awq_edge.model.w4a16 import NumberFormat, QuantizedWeight, UInt8

BLOCK = 32  # weights

_TYPES = {
    (4, "symmetric"): GgufType.Q4_0,
    (4, "asymmetric"): GgufType.Q4_1,
    (8, "symmetric"): GgufType.Q8_0,
}


def block_type(number_format: NumberFormat) -> GgufType | None:
    """The type whose blocks hold weights of a number format, None where there is none."""
    if number_format.group_size % BLOCK:
        return None
    return _TYPES.get((number_format.bits, number_format.scheme))


def obstacle(number_format: NumberFormat) -> str | None:
    """Why no type of GGUF holds weights of a number format; None where `block_type` has one."""
    if block_type(number_format) is not None:
        return None
    if number_format.group_size % BLOCK:
        return (
            f"GGUF has one scale for {BLOCK} weights, and groups are of {number_format.group_size}"
        )
    if number_format.bits == 8:
        return "GGUF's type of 8 bits, Q8_0, has no zero points; quantize with --scheme symmetric"
    return (
        f"GGUF has no type of {number_format.bits} bits with groups of {number_format.group_size} "
        "and a scale each: its K types of 2 and 3 bits have scales of 4 and 6 bits in blocks of "
        "256; quantize with 4 bits, or 8 and --scheme symmetric"
    )


def pack(weight: QuantizedWeight, gguf_type: GgufType) -> UInt8:
    """The bytes of a weight, uint8 [out, bytes of a row]; a group's scale is repeated in each of
    its blocks.

    weight: in a number format that has this type. m of Q4_1 is -d z, rounded to float16. Raises
    ValueError where float16 does not hold a scale.
    """
    out_features, in_features = weight.codes.shape
    scales = _float16(weight.scales)
    repeats = weight.group_size // BLOCK
    d = np.repeat(scales, repeats, axis=1)[:, :, None]
    codes = weight.codes.reshape(out_features, in_features // BLOCK, BLOCK)
    if gguf_type == GgufType.Q8_0:
        parts = [_bytes(d), (codes ^ 0x80)]  # q - 128 in two's complement
    else:
        parts = [_bytes(d)]
        if gguf_type == GgufType.Q4_1:
            zeros = weight.zeros.astype(np.float32)
            offsets = _float16(-scales.astype(np.float32) * zeros)
            parts.append(_bytes(np.repeat(offsets, repeats, axis=1)[:, :, None]))
        parts.append(codes[:, :, : BLOCK // 2] | (codes[:, :, BLOCK // 2 :] << 4))
    return np.concatenate(parts, axis=2).reshape(out_features, -1)


def _float16(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):  # refused below, with the value
        rounded = values.astype(np.float16)
    lost = ~np.isfinite(rounded) | ((rounded == 0) & (values != 0))
    if lost.any():
        raise ValueError(f"GGUF's float16 does not hold the value {values[lost].flat[0]:.3g}")
    return rounded


def _bytes(values: npt.NDArray[np.float16]) -> UInt8:
    """float16 [out, blocks, 1] as bytes, uint8 [out, blocks, 2]."""
    return np.ascontiguousarray(values).view(np.uint8)
