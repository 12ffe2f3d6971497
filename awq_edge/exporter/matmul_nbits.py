"""Weights of onnxruntime's MatMulNBits, from those of W4A16Linear.

    B            uint8 [N, K / group, group * bits / 8], low nibble first
    scales       [N, K / group], in the type of the activations
    zero_points  uint8 [N, ceil(K / group * bits / 8)], low nibble first; absent: the middle code

Source: onnxruntime's docs/ContribOperators.md. B of 4 and 8 bits has the bytes of the logical
layout. bits is 2, 4 or 8: 3-bit codes ride in containers of 4, and so do 2-bit ones where their
kernel is slow. group is a power of two: other groups are cut into smaller ones of the same scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from awq_edge.errors import ModelError
from awq_edge.exporter.weights import (
    FLOAT32,
    UINT8,
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
from awq_edge.program.matmul_nbits import SMALLEST_BLOCK, container_bits, largest_block


@dataclass(frozen=True)
class MatMulNBits:
    """Weights of a MatMulNBits, as the canonical graph has them but for zeros: one to a byte, uint8
    [out, in / group]. name: of the module."""

    name: str
    bits: int
    group_size: int
    in_features: int
    out_features: int
    codes: Weight
    scales: Weight
    zeros: Weight | None
    bias: Weight | None

    @classmethod
    def of(cls, node: gs.Node, known: dict[str, Weight]) -> MatMulNBits:
        """The weights of a W4A16Linear node."""
        given = [known.get(tensor.name) for tensor in node.inputs[1:]]
        codes, scales, zeros, bias = given + [None] * (4 - len(given))
        assert codes is not None and scales is not None
        attributes = node.attrs
        if largest_block(attributes["group_size"]) < SMALLEST_BLOCK:
            raise ModelError(
                f"{node.name}: group_size {attributes['group_size']}: onnxruntime needs groups "
                f"that are multiples of {SMALLEST_BLOCK}; quantize the original model again"
            )
        return cls(
            name=codes.name.removesuffix(".weight"),
            bits=attributes["bits"],
            group_size=attributes["group_size"],
            in_features=attributes["in_features"],
            out_features=attributes["out_features"],
            codes=codes,
            scales=scales,
            zeros=None if zeros is None else single_codes(zeros),
            bias=bias,
        )

    @classmethod
    def merged(cls, name: str, parts: list[MatMulNBits]) -> MatMulNBits:
        """Linears of one input, one below the other."""

        def below(suffix: str, weights: list[Weight | None]) -> Weight | None:
            present = [weight for weight in weights if weight is not None]
            return concatenated(f"{name}.{suffix}", present) if present else None

        first = parts[0]
        codes = below("weight", [part.codes for part in parts])
        scales = below("scales", [part.scales for part in parts])
        assert codes is not None and scales is not None
        return cls(
            name=name,
            bits=first.bits,
            group_size=first.group_size,
            in_features=first.in_features,
            out_features=sum(part.out_features for part in parts),
            codes=codes,
            scales=scales,
            zeros=below("zeros", [part.zeros for part in parts]),
            bias=below("bias", [part.bias for part in parts]),
        )

    @property
    def block_size(self) -> int:
        """Channels that share a scale in the node."""
        return largest_block(self.group_size)

    def container_bits(self, accuracy_level: int, dtype: int) -> int:
        """Bits of a code in the node. dtype: of the activations."""
        return container_bits(
            self.bits,
            self.group_size,
            accuracy_level,
            "float32" if dtype == FLOAT32 else "float16",
        )

    def inputs(self, container: int, dtype: int) -> list[Weight | None]:
        """B, scales, zero_points, g_idx and bias. container: see `container_bits`. dtype: of the
        activations."""
        rows, block = self.out_features, self.block_size
        shape = (rows, self.in_features // block, block * container // 8)
        codes = two_bits(self.codes) if container == 2 else self.codes
        zeros = self.zeros
        if zeros is None and container != self.bits:  # absent would be the container's middle
            grouped = (rows, self.in_features // self.group_size)
            middle = filled(f"{self.name}.zeros", 2 ** (self.bits - 1), grouped, self.codes.part)
            zeros = replace(middle, read_share=self.codes.read_share)
        times = self.group_size // block
        if zeros is not None:
            zeros = rows_packed(columns_repeated(zeros, times), container)
        scales = columns_repeated(cast(self.scales, dtype), times)
        return [reinterpreted(codes, UINT8, shape), scales, zeros, None, self.bias]
