"""Experts for runtimes without sizes that depend on data: every expert computes every token.

The canonical graph sends each token to its experts alone. How many rows an expert gets is known
only while it runs, which TensorRT's plugins, optimization profiles and CUDA graphs cannot follow.
Here a token's share in an expert that it is not sent to is 0, and what that expert makes of it is
left out:

    x ─ router ─ ... ─ shares of every expert [tokens, experts] ─ Split ─┐
    x ─┬─ expert 0 ─ Mul(its share) ─ Where(share > 0) ─┐                │
       └─ expert n ─ Mul(its share) ─ Where(share > 0) ─ Sum             │ (one column an expert)

All experts are read for every token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import DecoderGraph, GraphBuilder
from awq_edge.exporter.parts.building import numpy_type
from awq_edge.exporter.passes import detach, rewrite
from awq_edge.exporter.positions import BOOL, INT64

TOKENS = "tokens"


def masked_experts(work: DecoderGraph, builder: GraphBuilder) -> None:
    """Replace the routed form of `parts/experts.py`; a graph without experts stays as it is."""
    layers = {}
    for split in _routed(work):
        layer = _Layer.of(work, split)
        layers[layer.total.name] = layer
    if not layers:
        return
    for layer in layers.values():
        layer.read_all_tokens()
    _rename_rows(work, layers)
    work.weights.update(
        {name: replace(weight, read_share=1.0) for name, weight in work.weights.items()}
    )

    def total(node: gs.Node) -> None:
        layer = layers.get(node.name)
        if layer is None:
            work.graph.nodes.append(node)
        else:
            layer.combine(builder)

    rewrite(work, {"ReduceSum": total})
    work.graph.cleanup()


def _routed(work: DecoderGraph) -> list[gs.Node]:
    """The Splits whose sizes are computed."""
    return [
        node
        for node in work.graph.nodes
        if node.op == "Split" and isinstance(node.inputs[1], gs.Variable)
    ]


def _rename_rows(work: DecoderGraph, layers: dict[str, _Layer]) -> None:
    """Experts have as many rows as there are tokens now."""
    rows = {name for layer in layers.values() for name in layer.rows}
    for node in work.graph.nodes:
        for tensor in node.outputs:
            if tensor.shape and tensor.shape[0] in rows:
                tensor.shape = (TOKENS, *tensor.shape[1:])


@dataclass(frozen=True)
class _Layer:
    """The experts of one block in the canonical graph.

    tokens: x [tokens, hidden]. chosen: int64 [tokens * k]. shares: [tokens, k, 1]. rows: the names
    of the numbers of tokens of the experts. total: the node that makes the sum [tokens, hidden].
    """

    path: str
    split: gs.Node
    concat: gs.Node
    total: gs.Node
    tokens: gs.Variable
    chosen: gs.Variable
    shares: gs.Variable
    rows: tuple[str, ...]

    @classmethod
    def of(cls, work: DecoderGraph, split: gs.Node) -> _Layer:
        path = split.name.rpartition("/")[0]
        nodes = {node.name: node for node in work.graph.nodes}
        return cls(
            path=path,
            split=split,
            concat=nodes[f"{path}/Concat"],
            total=nodes[f"{path}/ReduceSum"],
            tokens=nodes[f"{path}/tokens/Reshape"].outputs[0],
            chosen=nodes[f"{path}/route/Shape"].inputs[0],
            shares=nodes[f"{path}/Mul"].inputs[1],
            rows=tuple(str(tensor.shape[0]) for tensor in split.outputs),
        )

    def read_all_tokens(self) -> None:
        """Every expert reads all tokens in the place of its piece."""
        for piece in list(self.split.outputs):
            for reader in list(piece.outputs):
                for index, tensor in enumerate(reader.inputs):
                    if tensor is piece:
                        reader.inputs[index] = self.tokens
        detach(self.split)

    def combine(self, builder: GraphBuilder) -> None:
        """The sum over all experts of share * output."""
        done, output = list(self.concat.inputs), self.total.outputs[0]
        detach(self.concat, self.total)
        dtype, shape = output.dtype, output.shape
        columns = self._columns(builder, len(done))
        zero = builder.inline("experts.zero", [0], numpy_type(dtype))
        parts = []
        for number, (expert, share) in enumerate(zip(done, columns, strict=True)):
            path = f"{self.path}/masked.{number}"
            (weighted,) = builder.node("Mul", f"{path}/Mul", [expert, share], [(dtype, shape)])
            (hit,) = builder.node(
                "Greater", f"{path}/Greater", [share, zero], [(BOOL, (TOKENS, 1))]
            )
            # What is not asked for may have overflowed: 0 times it is no 0.
            parts += builder.node("Where", f"{path}/Where", [hit, weighted, zero], [(dtype, shape)])
        builder.node("Sum", f"{self.path}/masked/Sum", parts, [output])

    def _columns(self, builder: GraphBuilder, experts: int) -> list[gs.Variable]:
        """The share of each expert in every token, 0 where it is not sent there: [tokens, 1].

        chosen [tokens, k, 1] ─ Equal(0..experts-1) ─ Cast ─ Mul(shares) ─ ReduceSum(k) ─ Split
        """
        path, dtype, per_token = f"{self.path}/masked", self.shares.dtype, self.shares.shape[1]
        column = builder.inline(f"experts.column.{per_token}", [-1, per_token, 1])
        every = builder.inline(f"experts.numbers.{experts}", np.arange(experts))
        wide = (TOKENS, per_token, experts)
        (chosen,) = builder.node(
            "Reshape", f"{path}/Reshape", [self.chosen, column], [(INT64, (TOKENS, per_token, 1))]
        )
        (hits,) = builder.node("Equal", f"{path}/Equal", [chosen, every], [(BOOL, wide)])
        (ones,) = builder.node("Cast", f"{path}/Cast", [hits], [(dtype, wide)], {"to": dtype})
        (weighted,) = builder.node("Mul", f"{path}/Mul", [ones, self.shares], [(dtype, wide)])
        (dense,) = builder.node(
            "ReduceSum",
            f"{path}/ReduceSum",
            [weighted, builder.inline("experts.axis", [1])],
            [(dtype, (TOKENS, experts))],
            {"keepdims": 0},
        )
        sizes = builder.inline(f"experts.ones.{experts}", [1] * experts)
        outputs = [(dtype, (TOKENS, 1))] * experts
        return builder.node("Split", f"{path}/Split", [dense, sizes], outputs, {"axis": 1})
