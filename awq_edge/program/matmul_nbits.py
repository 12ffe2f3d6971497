"""Weights of onnxruntime's MatMulNBits, from the logical layout.

    B            uint8 [N, K / block, block * bits / 8], low nibble first
    scales       [N, K / block], in the type of the activations
    zero_points  uint8 [N, ceil(K / block * bits / 8)], low nibble first; absent: the middle code

Source: onnxruntime's docs/ContribOperators.md. B of 4 and 8 bits has the bytes of the logical
layout. bits is 2, 4 or 8: 3-bit codes ride in containers of 4, and so do 2-bit ones where their
kernel is slow. block is a power of two: other groups are cut into smaller ones of the same scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from awq_edge.errors import ModelError
from awq_edge.program.program import Linear
from awq_edge.program.sources import Sources
from awq_edge.program.stored import StoredLinear, bias_of, module_of
from awq_edge.program.weights import (
    Dtype,
    Weight,
    cast,
    columns_repeated,
    concatenated,
    filled,
    reinterpreted,
    rows_packed,
    single_codes,
    two_bits,
)

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
# 2-bit codes have a kernel of their own for int8 activations and these groups. Elsewhere they are
# computed by a fallback, thirty times slower than 4-bit ones (measured with onnxruntime 1.32).
_TWO_BIT_BLOCKS, _TWO_BIT_LEVEL = (32, 64, 128), 4


def largest_block(group_size: int) -> int:
    """The largest power of two, up to 256, that divides a group."""
    return min(group_size & -group_size, LARGEST_BLOCK)


def container_bits(bits: int, group_size: int, accuracy_level: int, dtype: Dtype) -> int:
    """Bits of a code in MatMulNBits. dtype: of the activations."""
    if bits == 2:
        fast = accuracy_level == _TWO_BIT_LEVEL and dtype == "float32"
        return 2 if fast and largest_block(group_size) in _TWO_BIT_BLOCKS else 4
    return 4 if bits == 3 else bits


def matmul_nbits(
    linears: Sequence[Linear],
    places: tuple[int, ...],
    sources: Sources,
    dtype: Dtype,
    accuracy_level: int,
) -> StoredLinear:
    """Linears of one format as one MatMulNBits. Raises ModelError for groups that it lacks."""
    first = linears[0].stored
    assert first is not None
    bits, group_size = first.number_format.bits, first.number_format.group_size
    block, name = largest_block(group_size), module_of(linears)
    if block < SMALLEST_BLOCK:
        raise ModelError(
            f"{name}: group_size {group_size}: onnxruntime needs groups that are multiples of "
            f"{SMALLEST_BLOCK}; quantize the original model again"
        )
    parts = [sources.quantized(linear) for linear in linears]
    rows, columns = sum(linear.out_features for linear in linears), linears[0].in_features
    container, times = container_bits(bits, group_size, accuracy_level, dtype), group_size // block
    codes = _below(f"{name}.weight", [part.codes for part in parts])
    scales = _below(f"{name}.scales", [part.scales for part in parts])
    zeros = _zeros(name, [part.zeros for part in parts])
    if zeros is None and container != bits:  # absent would be the container's middle
        middle = filled(f"{name}.zeros", 2 ** (bits - 1), _shape_of(scales), codes.part)
        zeros = replace(middle, read_share=codes.read_share)
    if zeros is not None:
        zeros = rows_packed(columns_repeated(zeros, times), container)
    bias = bias_of(linears, sources, dtype)
    shape = (rows, columns // block, block * container // 8)
    tensors = {
        "B": reinterpreted(two_bits(codes) if container == 2 else codes, "uint8", shape),
        "scales": columns_repeated(cast(scales, dtype), times),
        **({} if zeros is None else {"zero_points": zeros}),
        **({} if bias is None else {"bias": bias}),
    }
    scale_groups = rows * (columns // block)
    return StoredLinear(name, tuple(linears), places, tensors, container, block, scale_groups)


def _shape_of(scales: Weight) -> tuple[int, int]:
    rows, groups = scales.shape
    return rows, groups


def _below(name: str, weights: Sequence[Weight]) -> Weight:
    """Weights one below the other; a single one is itself."""
    return weights[0] if len(weights) == 1 else concatenated(name, weights)


def _zeros(name: str, weights: Sequence[Weight | None]) -> Weight | None:
    """Zero points one to a byte, of linears of which all have some or none."""
    present = [single_codes(weight) for weight in weights if weight is not None]
    return _below(f"{name}.zeros", present) if present else None
