"""Newer operators in terms of opset 17, for TensorRT before 10.15.

    RMSNormalization   Cast, Mul, ReduceMean, Add, Sqrt, Div, Cast, Mul
    RotaryEmbedding    Split, products, Concat
    Gelu               Erf or Tanh, and products
    attention          rotation, ScatterND into the cache, MatMul, Softmax, MatMul

The attention works through the whole buffer of the cache, as native_attention.py says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, FLOAT32, INT64, SEQUENCE, Dims, Operand, module_path
from awq_edge.exporter.native_attention import by_heads, joined
from awq_edge.exporter.positions import Positions
from awq_edge.program.program import Attention

if TYPE_CHECKING:
    from awq_edge.exporter.emit_graph import GraphEmitter

_LOWEST = float(np.finfo(np.float32).min)


class Primitives:
    """Functions of opset 17."""

    def __init__(self, emitter: GraphEmitter) -> None:
        self._emitter = emitter

    def op(
        self, name: str, inputs: Sequence[Operand], shape: Dims, dtype: int, **attributes: Any
    ) -> gs.Variable:
        """A node of the operator that its name ends in."""
        return self._emitter.op(name, inputs, shape, attributes, dtype)

    def number(self, value: float) -> gs.Constant:
        """A float32 scalar."""
        return self._emitter.builder.inline(f"primitive.{value!r}", value, np.float32)

    def wide(self, path: str, x: gs.Variable) -> gs.Variable:
        """x in float32."""
        return self._emitter.cast(f"{path}/wide", x, FLOAT32)

    def narrow(self, path: str, x: gs.Variable) -> gs.Variable:
        """x in the activations' type."""
        return self._emitter.cast(f"{path}/narrow", x, self._emitter.dtype)

    def rms_norm(
        self, path: str, x: gs.Variable, weight: gs.Constant, epsilon: float
    ) -> gs.Variable:
        """x / sqrt(mean(x²) + epsilon) in float32, in the activations' type times the weight.

        x ─ Cast ─┬─ Mul(itself) ─ ReduceMean ─ Add(epsilon) ─ Sqrt ─┐
                  └───────────────────────────────────────────────── Div ─ Cast ─ Mul(weight)
        """
        wide, one = self.wide(path, x), (*x.shape[:-1], 1)
        square = self.op(f"{path}/square/Mul", [wide, wide], x.shape, FLOAT32)
        mean = self.op(f"{path}/ReduceMean", [square], one, FLOAT32, axes=[-1], keepdims=1)
        shifted = self.op(f"{path}/Add", [mean, self.number(epsilon)], one, FLOAT32)
        root = self.op(f"{path}/Sqrt", [shifted], one, FLOAT32)
        normed = self.op(f"{path}/Div", [wide, root], x.shape, FLOAT32)
        return self._emitter.op(f"{path}/Mul", [self.narrow(path, normed), weight], x.shape)

    def gelu(self, path: str, x: gs.Variable, *, tanh: bool) -> gs.Variable:
        """x / 2 * (1 + erf(x / sqrt(2))), or with tanh(sqrt(2 / pi) * (x + 0.044715 x³)) for erf;
        in float32."""
        shape = x.shape

        def op(name: str, *inputs: Operand) -> gs.Variable:
            return self.op(f"{path}/{name}", inputs, shape, FLOAT32)

        x = self.wide(path, x)
        if tanh:
            cube = op("cube/Mul", op("square/Mul", x, x), x)
            inner = op("inner/Add", x, op("small/Mul", cube, self.number(0.044715)))
            curve = op("Tanh", op("inner/Mul", inner, self.number(math.sqrt(2 / math.pi))))
        else:
            curve = op("Erf", op("inner/Mul", x, self.number(math.sqrt(0.5))))
        share = op("share/Add", curve, self.number(1.0))
        half = op("half/Mul", x, self.number(0.5))
        return self.narrow(path, op("Mul", half, share))

    def rotary(
        self,
        path: str,
        x: gs.Variable,
        tables: tuple[gs.Variable, gs.Variable],
        heads: int,
        size: int,
    ) -> gs.Variable:
        """x [B, S, heads * size] with a row of the tables [B, S, half] for each token."""
        builder = self._emitter.builder
        apart = builder.inline(f"primitive.rotary.{heads}", [0, 0, heads, size])
        shape = (*x.shape[:2], heads, size)
        split = self.op(f"{path}/split/Reshape", [x, apart], shape, x.dtype)
        axis = builder.inline("primitive.axes.2", [2])
        cosine, sine = (
            self.op(f"{path}/{name}/Unsqueeze", [table, axis],
                    (*table.shape[:2], 1, table.shape[2]), table.dtype)
            for name, table in zip(("cosine", "sine"), tables, strict=True)
        )  # fmt: skip
        rotated = self.turned(path, split, (cosine, sine), 2 * int(tables[0].shape[2]))
        whole = builder.inline(f"primitive.rotary.{heads * size}", [0, 0, heads * size])
        return self.op(f"{path}/join/Reshape", [rotated, whole], x.shape, x.dtype)

    def turned(
        self, path: str, x: gs.Variable, tables: tuple[gs.Variable, gs.Variable], rotary: int
    ) -> gs.Variable:
        """The first `rotary` channels of x [..., size] rotated, in its type; tables [..., half].

            ┌─ first ──┬─ first * cosine - second * sine ─┐
        x ──┼─ second ─┴─ second * cosine + first * sine ─┼─ Concat
            └─ (rest) ────────────────────────────────────┘
        """
        cosine, sine = tables
        half, dtype = rotary // 2, x.dtype
        sizes = [size for size in (half, half, int(x.shape[-1]) - rotary) if size]
        split = self._emitter.builder.inline(f"primitive.split.{'+'.join(map(str, sizes))}", sizes)
        pieces = [(dtype, (*x.shape[:-1], size)) for size in sizes]
        first, second, *rest = self._emitter.builder.node(
            "Split", f"{path}/Split", [x, split], pieces, {"axis": -1}
        )

        def op(name: str, a: gs.Variable, b: gs.Variable) -> gs.Variable:
            return self.op(f"{path}/{name}", [a, b], first.shape, dtype)

        turned = [
            op("Sub", op("cosine/first/Mul", first, cosine), op("sine/second/Mul", second, sine)),
            op("Add", op("cosine/second/Mul", second, cosine), op("sine/first/Mul", first, sine)),
        ]
        return self.op(f"{path}/Concat", [*turned, *rest], x.shape, dtype, axis=-1)


class PrimitiveAttention:
    """Attention in operators that opset 17 has, and every later one."""

    def __init__(self, emitter: GraphEmitter, positions: Positions) -> None:
        self._emitter = emitter
        self._builder = emitter.builder
        self._ops = Primitives(emitter)
        self._context = emitter.context
        self._positions = positions
        self._rows: dict[str, gs.Variable] = {}  # rotary table -> its rows of this call
        self._slots: gs.Variable | None = None

    def attend(
        self,
        attention: Attention,
        parts: tuple[gs.Variable, gs.Variable, gs.Variable],
        past: Sequence[gs.Variable],
        present: Sequence[gs.Variable],
    ) -> gs.Variable:
        """
        q ─ rotation ─────────────────────────────┐
        k ─ rotation ─ ScatterND(past_key) ─┬─── MatMul ─ (cap) ─ mask ─ Softmax ─ MatMul ─ y
        v ─ ScatterND(past_value) ─┬────────│────────────────────────────────────────┘
                     present_value ┘        └ present_key
        """
        emitter, ops, path = self._emitter, self._ops, module_path(attention.name)
        heads, kv_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_size
        q, k, v = (
            by_heads(emitter, f"{path}/{name}_heads", part, count, size)
            for name, part, count in zip("qkv", parts, (heads, kv_heads, kv_heads), strict=True)
        )
        rotary, tables = emitter.rotary_size(attention), emitter.tables(attention.rotation)
        if rotary:
            q = self._rotated(f"{path}/q_rotary", q, tables, rotary)
            k = self._rotated(f"{path}/k_rotary", k, tables, rotary)
        for part, new, before, after in zip(("key", "value"), (k, v), past, present, strict=True):
            inputs = [before, self._cache_slots(kv_heads), new]
            self._builder.node("ScatterND", f"{path}/{part}/ScatterND", inputs, [after])
        scores = self._scores(path, q, present[0], attention)
        shape = scores.shape
        mask = self._positions.mask(self._positions.window_of(attention))
        axis = self._builder.inline("primitive.axes.2", [2])
        wide = (BATCH, 1, 1, *mask.shape[2:])
        mask = ops.op(f"{path}/mask/Unsqueeze", [mask, axis], wide, mask.dtype)
        scores = ops.op(f"{path}/Where", [mask, scores, ops.number(_LOWEST)], shape, FLOAT32)
        shares = ops.op(f"{path}/Softmax", [scores], shape, FLOAT32, axis=-1)
        shares = emitter.cast(f"{path}/shares", shares, emitter.dtype)
        values = self._one_group(f"{path}/value", present[1])
        grouped = (BATCH, kv_heads, heads // kv_heads, SEQUENCE, size)
        attended = emitter.op(f"{path}/values/MatMul", [shares, values], grouped)
        apart = self._builder.inline(f"primitive.heads.{heads}", [0, heads, -1, size])
        whole = (BATCH, heads, SEQUENCE, size)
        attended = emitter.op(f"{path}/heads/Reshape", [attended, apart], whole)
        return joined(emitter, f"{path}/y_heads", attended)

    def _scores(
        self, path: str, q: gs.Variable, keys: gs.Variable, attention: Attention
    ) -> gs.Variable:
        """q·k * scale, with its soft cap: float32 [B, kv_heads, group, S, context].

        q is scaled before the product, so that float16 does not overflow in it.
        """
        ops, kv_heads, size = self._ops, attention.num_kv_heads, attention.head_size
        group = attention.num_heads // kv_heads
        grouped = (BATCH, kv_heads, group, SEQUENCE, size)
        factor = ops.number(attention.scale)
        scaled = ops.op(f"{path}/q/Mul", [ops.wide(f"{path}/q", q), factor], q.shape, FLOAT32)
        scaled = ops.narrow(f"{path}/q", scaled)
        apart = self._builder.inline(f"primitive.group.{group}", [0, kv_heads, group, -1, size])
        q = ops.op(f"{path}/q/Reshape", [scaled, apart], grouped, q.dtype)
        keys = self._one_group(f"{path}/key", keys)
        turned = (*keys.shape[:3], size, self._context)
        keys = ops.op(f"{path}/key/Transpose", [keys], turned, q.dtype, perm=[0, 1, 2, 4, 3])
        shape = (*grouped[:-1], self._context)
        scores = ops.wide(path, ops.op(f"{path}/scores/MatMul", [q, keys], shape, q.dtype))
        if attention.soft_cap is None:
            return scores
        cap = ops.number(attention.soft_cap)
        scores = ops.op(f"{path}/cap/Div", [scores, cap], shape, FLOAT32)
        scores = ops.op(f"{path}/cap/Tanh", [scores], shape, FLOAT32)
        return ops.op(f"{path}/cap/Mul", [scores, cap], shape, FLOAT32)

    def _one_group(self, path: str, cache: gs.Variable) -> gs.Variable:
        """[B, kv_heads, context, size] ─ Unsqueeze ─ [B, kv_heads, 1, context, size]"""
        axis = self._builder.inline("primitive.axes.2", [2])
        batch, kv_heads, context, size = cache.shape
        shape = (batch, kv_heads, 1, context, size)
        return self._ops.op(f"{path}/Unsqueeze", [cache, axis], shape, cache.dtype)

    def _rotated(
        self, path: str, x: gs.Variable, tables: Sequence[gs.Constant], rotary: int
    ) -> gs.Variable:
        """Rotary embedding of x [B, heads, S, size], in float32."""
        cosine, sine = map(self._table_rows, tables)
        return self._ops.narrow(
            path, self._ops.turned(path, self._ops.wide(path, x), (cosine, sine), rotary)
        )

    def _table_rows(self, table: gs.Constant) -> gs.Variable:
        """table [context, half] ─ Gather(positions) ─ Unsqueeze ─ [B, 1, S, half]; once a table."""
        if table.name not in self._rows:
            half, path = table.shape[1], f"/{table.name}"
            rows = self._ops.op(f"{path}/Gather", [table, self._positions.ids()],
                                (BATCH, SEQUENCE, half), FLOAT32)  # fmt: skip
            axis = self._builder.inline("primitive.axes.1", [1])
            shape = (BATCH, 1, SEQUENCE, half)
            self._rows[table.name] = self._ops.op(f"{path}/Unsqueeze", [rows, axis], shape, FLOAT32)
        return self._rows[table.name]

    def _cache_slots(self, kv_heads: int) -> gs.Variable:
        """Indices that ScatterND writes to: (sequence, head, position), int64 [B, kv_heads, S, 3].

        positions ─ Shape ─ Range(B) ─ Reshape [B, 1, 1, 1] ─┐
        heads [kv_heads, 1, 1] ───────────────────────────── Concat, each added to zeros of the
        positions [B, S] ─ Unsqueeze [B, 1, S, 1] ───────────┘       whole shape
        """
        if self._slots is None:
            ops, path, ids = self._ops, "/slots", self._positions.ids()
            builder = self._builder
            shape: Dims = (BATCH, kv_heads, SEQUENCE, 1)

            def op(name: str, inputs: Sequence[Operand], result: Dims, **more: Any) -> gs.Variable:
                return ops.op(f"{path}/{name}", inputs, result, INT64, **more)

            axes = builder.inline("primitive.axes.1,3", [1, 3])
            rows = op("Unsqueeze", [ids, axes], (BATCH, 1, SEQUENCE, 1))
            heads = builder.inline("primitive.kv_heads", np.arange(kv_heads).reshape(-1, 1, 1))
            zeros = op("Sub", [rows, rows], (BATCH, 1, SEQUENCE, 1))
            by_head = op("heads/Add", [zeros, heads], shape)
            count = op("Shape", [ids], (1,), start=0, end=1)
            limits = [
                builder.inline("primitive.first", 0),
                op("Squeeze", [count], ()),
                builder.inline("primitive.step", 1),
            ]
            column = builder.inline("primitive.column", [-1, 1, 1, 1])
            batch = op("Reshape", [op("Range", limits, (BATCH,)), column], (BATCH, 1, 1, 1))
            nothing = op("heads/Sub", [by_head, by_head], shape)
            parts = [
                op("batch/Add", [nothing, batch], shape),
                by_head,
                op("positions/Add", [nothing, rows], shape),
            ]
            self._slots = op("Concat", parts, (*shape[:-1], 3), axis=-1)
        return self._slots
