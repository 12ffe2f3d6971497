"""Rotary embedding in onnxruntime: inside GroupQueryAttention, or as RotaryEmbedding before it.

Source: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from awq_edge.exporter.graph import BATCH, SEQUENCE, GraphBuilder
from awq_edge.exporter.passes import detach

MICROSOFT = "com.microsoft"
INT64 = int(TensorProto.INT64)
# GroupQueryAttention rotates heads whose size, and rotary part, are multiples of this.
ROTARY_MULTIPLE = 16


def rotates_inside(node: gs.Node) -> bool:
    """True where the GroupQueryAttention of a CachedAttention rotates."""
    sizes = (node.attrs["head_size"], node.attrs["rotary_size"])
    return sizes[1] > 0 and all(size % ROTARY_MULTIPLE == 0 for size in sizes)


def rotates_apart(node: gs.Node) -> bool:
    """True where q and k are rotated before it; where CachedAttention does not, nothing is."""
    return node.attrs["rotary_size"] > 0 and not rotates_inside(node)


def position_ids(builder: GraphBuilder, past: gs.Variable, sequence: gs.Variable) -> gs.Variable:
    """past_length [B] ─ Unsqueeze [B, 1] ─ Add(Range(S) [S]) ─ [B, S]"""
    path = "/position_ids"
    scalar = builder.inline("shape.scalar", np.zeros(0))
    (length,) = builder.node("Reshape", f"{path}/Reshape", [sequence, scalar], [(INT64, ())])
    limits = [builder.inline("zero.scalar", 0), length, builder.inline("one.scalar", 1)]
    (steps,) = builder.node("Range", f"{path}/Range", limits, [(INT64, (SEQUENCE,))])
    axis = builder.inline("axes.1", [1])
    (column,) = builder.node("Unsqueeze", f"{path}/Unsqueeze", [past, axis], [(INT64, (BATCH, 1))])
    (ids,) = builder.node("Add", f"{path}/Add", [column, steps], [(INT64, (BATCH, SEQUENCE))])
    return ids


class Rotations:
    """Appends RotaryEmbedding nodes. dtype: of the activations."""

    def __init__(self, builder: GraphBuilder, dtype: int) -> None:
        self._builder = builder
        self._dtype = dtype
        self._made: dict[str, gs.Variable] = {}  # what several layers read

    def by_position(
        self,
        path: str,
        x: gs.Variable,
        ids: gs.Variable | None,
        tables: Sequence[gs.Constant],
        heads: int,
        sizes: tuple[int, int],
    ) -> gs.Variable:
        """x [B, S, heads * head_size], rotated by the rows of the tables that ids [B, S] name.

        sizes: head_size and rotary_size.
        """
        attributes = {"num_heads": heads, "interleaved": 0}
        if sizes[0] != sizes[1]:
            attributes["rotary_embedding_dim"] = sizes[1]
        inputs, result = [x, ids, *tables], (self._dtype, x.shape)
        (rotated,) = self._builder.node(
            "RotaryEmbedding", f"{path}/RotaryEmbedding", inputs, [result], attributes, MICROSOFT
        )
        return rotated

    def by_token(self, node: gs.Node) -> None:
        """The standard RotaryEmbedding whose tables have a row of every token, [B, S, half]: the
        rows of all, by their numbers."""
        (x, *tables), (output,) = list(node.inputs), list(node.outputs)
        attributes = dict(node.attrs)
        detach(node)
        inputs = [x, self._row_numbers(x), *(self._rows(table) for table in tables)]
        self._builder.node("RotaryEmbedding", node.name, inputs, [output], attributes, MICROSOFT)

    def _rows(self, table: gs.Variable) -> gs.Variable:
        """[B, S, half] ─ Reshape ─ [B * S, half]"""
        if table.name not in self._made:
            half = table.shape[-1]
            shape = self._builder.inline(f"shape.rows.{half}", [-1, half])
            (self._made[table.name],) = self._builder.node(
                "Reshape",
                f"{table.name}/rows/Reshape",
                [table, shape],
                [(self._dtype, ("tokens", half))],
            )
        return self._made[table.name]

    def _row_numbers(self, x: gs.Variable) -> gs.Variable:
        """0 to B * S - 1, int64 [B, S]"""
        path, builder = "/row_numbers", self._builder
        if path not in self._made:
            (shape,) = builder.node("Shape", f"{path}/Shape", [x], [(INT64, (2,))], {"end": 2})
            (count,) = builder.node(
                "ReduceProd", f"{path}/ReduceProd", [shape], [(INT64, ())], {"keepdims": 0}
            )
            limits = [builder.inline("zero.scalar", 0), count, builder.inline("one.scalar", 1)]
            (flat,) = builder.node("Range", f"{path}/Range", limits, [(INT64, ("tokens",))])
            (self._made[path],) = builder.node(
                "Reshape", f"{path}/Reshape", [flat, shape], [(INT64, (BATCH, SEQUENCE))]
            )
        return self._made[path]
