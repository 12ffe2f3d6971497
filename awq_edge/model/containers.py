"""Bits and groups that runtimes hold codes in, where they lack those of the number format.

onnxruntime's MatMulNBits    2, 4 or 8 bits; groups that are powers of two
the kernels of plugins/      3, 4 or 8 bits
"""

from __future__ import annotations

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256  # of MatMulNBits
# 2-bit codes have a kernel of their own for int8 activations and these groups. Elsewhere they are
# computed by a fallback, thirty times slower than 4-bit ones (measured with onnxruntime 1.32).
TWO_BIT_BLOCKS, TWO_BIT_LEVEL = (32, 64, 128), 4

# What the quantizer makes, largest first. Every runtime takes them all: they are powers of two, and
# the layout of the kernels has no others.
GROUP_SIZES = (128, 64, 32)


def largest_block(group_size: int) -> int:
    """The largest power of two, up to 256, that divides a group."""
    return min(group_size & -group_size, LARGEST_BLOCK)


def matmul_nbits_bits(bits: int, group_size: int, accuracy_level: int, is_float32: bool) -> int:
    """Bits of a code in MatMulNBits. is_float32: of the activations."""
    if bits == 2:
        fast = accuracy_level == TWO_BIT_LEVEL and is_float32
        return 2 if fast and largest_block(group_size) in TWO_BIT_BLOCKS else 4
    return 4 if bits == 3 else bits


def kernel_bits(bits: int) -> int:
    """Bits of a code in the layout of the kernels."""
    return 3 if bits == 2 else bits
