"""Positions and masks as nodes, for attention that is not told how long the cache is.

input_ids ─ Shape ─ Squeeze ─ Range(S) ─┐
past_length [B] ─ Unsqueeze ─────────── Add ─ positions [B, S] ─ Unsqueeze ─ LessOrEqual ─ mask
                                                0..context-1 ──────────────┘
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx import TensorProto

from awq_edge.exporter.graph import BATCH, SEQUENCE, GraphBuilder

BOOL, INT64 = int(TensorProto.BOOL), int(TensorProto.INT64)


class Positions:
    """Made once for all layers, in front of the first node that reads them."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        inputs = {tensor.name: tensor for tensor in builder.target.graph.inputs}
        self.past_length = inputs["past_length"]
        caches = [tensor for name, tensor in inputs.items() if name.startswith("past.")]
        self.cache_shape = tuple(caches[0].shape)  # [B, kv_heads, context, size]
        self._context = int(self.cache_shape[2])
        # Of the ids or the embeddings: [B, S, ...].
        self._tokens = next(iter(builder.target.graph.inputs))
        self._ids: gs.Variable | None = None
        self._keys: gs.Variable | None = None
        self._masks: dict[int, gs.Variable] = {}

    def ids(self) -> gs.Variable:
        """int64 [B, S]: past_length[b] + s."""
        if self._ids is None:
            self._ids = self._make_ids()
        return self._ids

    def mask(self, window: int) -> gs.Variable:
        """The positions of the cache that a token sees, bool [B, 1, S, context]: none behind it,
        and at most `window`, itself included; 0: all before it."""
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_ids(self) -> gs.Variable:
        builder, path = self._builder, "/positions"
        (sequence,) = builder.node(
            "Shape", f"{path}/Shape", [self._tokens], [(INT64, (1,))], {"start": 1, "end": 2}
        )
        (length,) = builder.node("Squeeze", f"{path}/Squeeze", [sequence], [(INT64, ())])
        steps = self._range(f"{path}/Range", length, SEQUENCE)
        column = self._unsqueezed(f"{path}/Unsqueeze", self.past_length, [1], (BATCH, 1))
        (ids,) = builder.node("Add", f"{path}/Add", [column, steps], [(INT64, (BATCH, SEQUENCE))])
        return ids

    def _make_mask(self, window: int) -> gs.Variable:
        builder, path = self._builder, f"/mask.{window}" if window else "/mask"
        shape = (BATCH, 1, SEQUENCE, self._context)
        rows = (BATCH, 1, SEQUENCE, 1)
        queries = self._unsqueezed(f"{path}/Unsqueeze", self.ids(), [1, 3], rows)
        if self._keys is None:
            count = builder.inline("positions.context", self._context)
            self._keys = self._range("/positions/keys/Range", count, self._context)
        (seen,) = builder.node(
            "LessOrEqual", f"{path}/LessOrEqual", [self._keys, queries], [(BOOL, shape)]
        )
        if not window:
            return seen
        distance = builder.inline(f"positions.window.{window}", [window])
        (first,) = builder.node("Sub", f"{path}/Sub", [queries, distance], [(INT64, rows)])
        (near,) = builder.node("Greater", f"{path}/Greater", [self._keys, first], [(BOOL, shape)])
        (both,) = builder.node("And", f"{path}/And", [seen, near], [(BOOL, shape)])
        return both

    def _range(self, name: str, count: gs.Tensor, size: int | str) -> gs.Variable:
        builder = self._builder
        limits = [builder.inline("positions.zero", 0), count, builder.inline("positions.one", 1)]
        (steps,) = builder.node("Range", name, limits, [(INT64, (size,))])
        return steps

    def _unsqueezed(
        self, name: str, x: gs.Variable, axes: list[int], shape: tuple[int | str, ...]
    ) -> gs.Variable:
        where = self._builder.inline(f"positions.axes.{axes}", axes)
        (unsqueezed,) = self._builder.node("Unsqueeze", name, [x, where], [(INT64, shape)])
        return unsqueezed
