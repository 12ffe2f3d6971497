"""The bytes of a quantized linear in a bundle, by the form in which runtimes store it.

matmul_nbits   onnxruntime's MatMulNBits
kernels        the layout of the kernels: cuda, and TensorRT's plugin
native         TensorRT's own layers

The record of a runtime names its function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from awq_edge.fit.formats import Quantized
from awq_edge.kernels.interface import BLOCK_CHANNELS, TILE_ROWS
from awq_edge.model.containers import kernel_bits, largest_block, matmul_nbits_bits

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_FLOAT16, _INT32 = 2, 4


@dataclass(frozen=True)
class LinearSizes:
    """tensors: bytes of each, in the order of the file. scale_groups: scales that a session keeps
    copies of, see `Memory.packing`."""

    tensors: Sequence[int]
    scale_groups: int = 0


@dataclass(frozen=True)
class Target:
    """The runtime that weights are stored for: fields of its record, as one recipe chooses them.

    linear_sizes: of (rows, columns, number format, target).
    tables_dtype: of the rotary tables.
    """

    linear_sizes: Callable[[int, int, Quantized, Target], LinearSizes]
    activation_dtype: str
    tables_dtype: str
    accuracy_level: int
    casts_embedding: bool
    routes_experts: bool

    @property
    def item(self) -> int:
        """Bytes of an activation, and of an unquantized weight."""
        return ITEM_BYTES[self.activation_dtype]


def matmul_nbits(rows: int, columns: int, quantized: Quantized, target: Target) -> LinearSizes:
    """Codes, scales and zeros of MatMulNBits (`awq_edge/exporter/matmul_nbits.py`)."""
    number_format = quantized.number_format
    group_size, bits = number_format.group_size, number_format.bits
    is_float32 = target.activation_dtype == "float32"
    container = matmul_nbits_bits(bits, group_size, target.accuracy_level, is_float32)
    blocks = columns // largest_block(group_size)
    tensors = [rows * columns * container // 8, rows * blocks * target.item]
    if quantized.has_zeros or container != bits:
        tensors.append(rows * -(-blocks * container // 8))
    return LinearSizes(tensors, scale_groups=rows * blocks)


def kernels(rows: int, columns: int, quantized: Quantized, target: Target) -> LinearSizes:
    """qweight, scales and zeros in the layout of the kernels (`awq_edge/kernels/packing.py`)."""
    number_format = quantized.number_format
    container = kernel_bits(number_format.bits)
    tiles, blocks = -(-rows // TILE_ROWS), -(-columns // BLOCK_CHANNELS)
    groups = blocks * BLOCK_CHANNELS // number_format.group_size
    tensors = [tiles * blocks * 64 * container * _INT32, tiles * groups * TILE_ROWS * _FLOAT16]
    if quantized.has_zeros or container != number_format.bits:
        tensors.append(tiles * groups * (4 if container == 8 else 2) * _INT32)
    return LinearSizes(tensors)


def native(rows: int, columns: int, quantized: Quantized, target: Target) -> LinearSizes:
    """INT4 or INT8 codes and scales of TensorRT's DequantizeLinear, which has no zero points."""
    number_format = quantized.number_format
    codes = rows * columns if number_format.bits == 8 else -(-rows * columns // 2)
    return LinearSizes([codes, rows * (columns // number_format.group_size) * target.item])
