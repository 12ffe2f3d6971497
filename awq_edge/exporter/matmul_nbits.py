"""Weights of onnxruntime's MatMulNBits, from those of W4A16Linear.

    B            uint8 [N, K / group, group * bits / 8], low nibble first
    scales       [N, K / group], in the type of the activations
    zero_points  uint8 [N, ceil(K / group * bits / 8)], low nibble first; absent: the middle code

Source: onnxruntime's docs/ContribOperators.md. B has the bytes of the logical layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from awq_edge.exporter.weights import (
    UINT8,
    Weight,
    cast,
    concatenated,
    reinterpreted,
    rows_padded,
)


@dataclass(frozen=True)
class MatMulNBits:
    """Weights of a MatMulNBits, as the canonical graph has them. name: of the module."""

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
        return cls(
            name=codes.name.removesuffix(".weight"),
            bits=attributes["bits"],
            group_size=attributes["group_size"],
            in_features=attributes["in_features"],
            out_features=attributes["out_features"],
            codes=codes,
            scales=scales,
            zeros=zeros,
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
            zeros=below("zeros", [_row_bytes(part.zeros) for part in parts]),
            bias=below("bias", [part.bias for part in parts]),
        )

    def inputs(self, dtype: int) -> list[Weight | None]:
        """B, scales, zero_points, g_idx and bias. dtype: of the activations."""
        groups = self.in_features // self.group_size
        shape = (self.out_features, groups, self.group_size * self.bits // 8)
        codes = reinterpreted(self.codes, UINT8, shape)
        return [codes, cast(self.scales, dtype), _row_bytes(self.zeros), None, self.bias]


def _row_bytes(zeros: Weight | None) -> Weight | None:
    """Zero points with every row in whole bytes."""
    return zeros if zeros is None or zeros.dtype == UINT8 else rows_padded(zeros)
