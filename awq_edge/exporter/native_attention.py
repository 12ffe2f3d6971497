"""Attention over the cache in TensorRT's own layers, opset 24.

It works through the whole buffer of the cache: what lies behind the filled positions is multiplied
by 0, and has to be finite for that. Never is_causal: ONNX settled only in 2026 where its diagonal
lies in a buffer that is longer than the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, SEQUENCE, module_path
from awq_edge.exporter.positions import Positions
from awq_edge.program.program import Attention

if TYPE_CHECKING:
    from awq_edge.exporter.emit_graph import GraphEmitter


class NativeAttention:
    """Attention without a soft cap, which TensorRT's does not have."""

    def __init__(self, emitter: GraphEmitter) -> None:
        self._emitter = emitter
        self.positions = Positions(emitter)

    def attend(
        self,
        attention: Attention,
        parts: tuple[gs.Variable, gs.Variable, gs.Variable],
        past: Sequence[gs.Variable],
        present: Sequence[gs.Variable],
    ) -> gs.Variable:
        """
        q ─ RotaryEmbedding ─ heads ─────────────────────────┐
        k ─ RotaryEmbedding ─ heads ─ TensorScatter(past_key) ─┬─ Attention ─ [B, S, heads * size]
        v ─ heads ─ TensorScatter(past_value) ───────────┬─────│
                                         present_value ──┘     └─ present_key
        """
        emitter, path = self._emitter, module_path(attention.name)
        (q, k, v), heads = parts, attention.num_heads
        if emitter.rotary_size(attention):
            q = self._rotated(f"{path}/q_rotary", q, heads, attention)
            k = self._rotated(f"{path}/k_rotary", k, attention.num_kv_heads, attention)
        size = attention.head_size
        q = by_heads(emitter, f"{path}/q_heads", q, heads, size)
        for part, new, before, after in zip(("key", "value"), (k, v), past, present, strict=True):
            by_head = by_heads(emitter, f"{path}/{part}_heads", new, attention.num_kv_heads, size)
            self._append(f"{path}/{part}", before, by_head, after)
        mask = self.positions.mask(self.positions.window_of(attention))
        attended = emitter.op(
            f"{path}/Attention",
            [q, *present, mask],
            (BATCH, heads, SEQUENCE, size),
            {"scale": attention.scale},
        )
        return joined(emitter, f"{path}/y_heads", attended)

    def _append(
        self, path: str, past: gs.Variable, update: gs.Variable, present: gs.Variable
    ) -> None:
        inputs = [past, update, self._emitter.past_length]
        attributes = {"axis": 2, "mode": "linear"}
        name = f"{path}/TensorScatter"
        self._emitter.builder.node("TensorScatter", name, inputs, [present], attributes)

    def _rotated(self, path: str, x: gs.Variable, heads: int, attention: Attention) -> gs.Variable:
        """Rotary embedding of x [B, S, heads * head_size]; tables in its type."""
        emitter, rotary = self._emitter, self._emitter.rotary_size(attention)
        rotation = {"num_heads": heads, "interleaved": 0}
        if rotary != attention.head_size:
            rotation["rotary_embedding_dim"] = rotary
        inputs = [x, *emitter.tables(attention.rotation), self.positions.ids()]
        return emitter.op(f"{path}/RotaryEmbedding", inputs, x.shape, rotation)


def by_heads(
    emitter: GraphEmitter, path: str, x: gs.Variable, heads: int, size: int
) -> gs.Variable:
    """[B, S, heads * size] ─ Reshape ─ Transpose ─ [B, heads, S, size]"""
    shape = emitter.builder.inline(f"heads.{heads}x{size}", [0, 0, heads, size])
    apart = emitter.op(f"{path}/Reshape", [x, shape], (BATCH, SEQUENCE, heads, size), dtype=x.dtype)
    turned = (BATCH, heads, SEQUENCE, size)
    return emitter.op(f"{path}/Transpose", [apart], turned, {"perm": [0, 2, 1, 3]}, x.dtype)


def joined(emitter: GraphEmitter, path: str, x: gs.Variable) -> gs.Variable:
    """[B, heads, S, size] ─ Transpose ─ Reshape ─ [B, S, heads * size]"""
    _, heads, _, size = x.shape
    turned = (BATCH, SEQUENCE, heads, size)
    apart = emitter.op(f"{path}/Transpose", [x], turned, {"perm": [0, 2, 1, 3]}, x.dtype)
    shape = emitter.builder.inline(f"heads.{heads * size}", [0, 0, heads * size])
    whole = (BATCH, SEQUENCE, heads * size)
    return emitter.op(f"{path}/Reshape", [apart, shape], whole, dtype=x.dtype)
