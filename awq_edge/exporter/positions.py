"""Positions and masks as nodes, for attention that is not told how long the cache is.

input_ids ─ Shape ─ Squeeze ─ Range(S) ─┐
past_length [B] ─ Unsqueeze ─────────── Add ─ positions [B, S] ─ Unsqueeze ─ LessOrEqual ─ mask
                                                0..context-1 ──────────────┘
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, BOOL, INT64, SEQUENCE, Operand
from awq_edge.program.program import Attention

if TYPE_CHECKING:
    from awq_edge.exporter.emit_graph import GraphEmitter


class Positions:
    """Made once for all layers, in front of the first node that reads them."""

    def __init__(self, emitter: GraphEmitter) -> None:
        self._emitter = emitter
        self._context = emitter.context
        self._ids: gs.Variable | None = None
        self._keys: gs.Variable | None = None
        self._masks: dict[int, gs.Variable] = {}

    def window_of(self, attention: Attention) -> int:
        """Positions that a query sees, itself included; 0: all, also where there are no more."""
        window = attention.window or 0
        return window if window < self._context else 0

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
        path, tokens = "/positions", self._emitter.target.graph.inputs[0]  # ids, or embeddings
        ends = {"start": 1, "end": 2}
        sequence = self._emitter.op(f"{path}/Shape", [tokens], (1,), ends, INT64)
        length = self._integers(f"{path}/Squeeze", [sequence])
        steps = self._range(f"{path}/Range", length, SEQUENCE)
        past = self._emitter.past_length
        column = self._unsqueezed(f"{path}/Unsqueeze", past, [1], BATCH, 1)
        return self._integers(f"{path}/Add", [column, steps], BATCH, SEQUENCE)

    def _make_mask(self, window: int) -> gs.Variable:
        emitter, path = self._emitter, f"/mask.{window}" if window else "/mask"
        shape, rows = (BATCH, 1, SEQUENCE, self._context), (BATCH, 1, SEQUENCE, 1)
        queries = self._unsqueezed(f"{path}/Unsqueeze", self.ids(), [1, 3], *rows)
        if self._keys is None:
            count = emitter.builder.inline("positions.context", self._context)
            self._keys = self._range("/positions/keys/Range", count, self._context)
        seen = emitter.op(f"{path}/LessOrEqual", [self._keys, queries], shape, dtype=BOOL)
        if not window:
            return seen
        distance = emitter.builder.inline(f"positions.window.{window}", [window])
        first = self._integers(f"{path}/Sub", [queries, distance], *rows)
        near = emitter.op(f"{path}/Greater", [self._keys, first], shape, dtype=BOOL)
        return emitter.op(f"{path}/And", [seen, near], shape, dtype=BOOL)

    def _range(self, name: str, count: Operand, size: int | str) -> gs.Variable:
        builder = self._emitter.builder
        limits = [builder.inline("positions.zero", 0), count, builder.inline("positions.one", 1)]
        return self._integers(name, limits, size)

    def _unsqueezed(
        self, name: str, x: gs.Variable, axes: list[int], *shape: int | str
    ) -> gs.Variable:
        where = self._emitter.builder.inline(f"positions.axes.{axes}", axes)
        return self._integers(name, [x, where], *shape)

    def _integers(self, name: str, inputs: list[Operand], *shape: int | str) -> gs.Variable:
        return self._emitter.op(name, inputs, shape, dtype=INT64)
