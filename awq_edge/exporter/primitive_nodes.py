"""Newer operators in terms of opset 17, for TensorRT 10.3.

    RMSNormalization   Cast, Mul, ReduceMean, Add, Sqrt, Div, Cast, Mul
    RotaryEmbedding    Split, products, Concat
    Gelu               Erf or Tanh, and products
    CachedAttention    rotation, ScatterND into the cache, MatMul, Softmax, MatMul

The attention works through the whole buffer of the cache, as native_nodes.py says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, SEQUENCE, DecoderGraph, Dims, GraphBuilder
from awq_edge.exporter.native_nodes import by_heads, joined
from awq_edge.exporter.passes import detach, rewrite
from awq_edge.exporter.positions import INT64, Positions
from awq_edge.exporter.weights import FLOAT32

_LOWEST = float(np.finfo(np.float32).min)


def primitive_functions(work: DecoderGraph, builder: GraphBuilder) -> None:
    """RMSNormalization, RotaryEmbedding and Gelu in opset 17."""
    ops = _Ops(builder)
    handlers = {"RMSNormalization": ops.rms_norm, "Gelu": ops.gelu, "RotaryEmbedding": ops.rotary}
    rewrite(work, handlers)


class _Ops:
    """Appends nodes; a method for a node of one output returns it."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder

    def op(
        self,
        name: str,
        inputs: Sequence[gs.Tensor],
        shape: Dims,
        dtype: int,
        **attributes: Any,
    ) -> gs.Variable:
        """A node of the operator that its name ends in."""
        (output,) = self._builder.node(
            name.rpartition("/")[2], name, list(inputs), [(dtype, shape)], attributes
        )
        return output

    def number(self, value: float) -> gs.Constant:
        """A float32 scalar."""
        return self._builder.inline(f"primitive.{value!r}", value, np.float32)

    def wide(self, path: str, x: gs.Variable) -> gs.Variable:
        """x in float32."""
        if x.dtype == FLOAT32:
            return x
        return self.op(f"{path}/wide/Cast", [x], x.shape, FLOAT32, to=FLOAT32)

    def finish(self, path: str, x: gs.Variable, y: gs.Variable, op: str, *others: Any) -> None:
        """y = op(x, others), computed in x's type and cast to y's."""
        if x.dtype == y.dtype:
            self._builder.node(op, f"{path}/{op}", [x, *others], [y])
            return
        last = self.op(f"{path}/{op}", [x, *others], y.shape, x.dtype)
        self._builder.node("Cast", f"{path}/narrow/Cast", [last], [y], {"to": y.dtype})

    def rms_norm(self, node: gs.Node) -> None:
        """x / sqrt(mean(x²) + epsilon) in float32, in the activations' type times the weight.

        x ─ Cast ─┬─ Mul(itself) ─ ReduceMean ─ Add(epsilon) ─ Sqrt ─┐
                  └───────────────────────────────────────────────── Div ─ Cast ─ Mul(weight)
        """
        (x, weight), y = list(node.inputs), node.outputs[0]
        path, epsilon = node.name.rpartition("/")[0], float(node.attrs["epsilon"])
        detach(node)
        wide, one = self.wide(path, x), (*x.shape[:-1], 1)
        square = self.op(f"{path}/square/Mul", [wide, wide], x.shape, FLOAT32)
        mean = self.op(f"{path}/ReduceMean", [square], one, FLOAT32, axes=[-1], keepdims=1)
        shifted = self.op(f"{path}/Add", [mean, self.number(epsilon)], one, FLOAT32)
        root = self.op(f"{path}/Sqrt", [shifted], one, FLOAT32)
        normed = self._builder.variable(f"{path}/normed", x.dtype, x.shape)
        self.finish(path, wide, normed, "Div", root)
        self._builder.node("Mul", f"{path}/Mul", [normed, weight], [y])

    def gelu(self, node: gs.Node) -> None:
        """x / 2 * (1 + erf(x / sqrt(2))), or with tanh(sqrt(2 / pi) * (x + 0.044715 x³)) for erf;
        in float32."""
        (x,), y = list(node.inputs), node.outputs[0]
        path, shape = node.name.rpartition("/")[0], x.shape
        tanh = node.attrs.get("approximate", "none") == "tanh"
        detach(node)

        def op(name: str, *inputs: gs.Tensor) -> gs.Variable:
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
        self.finish(path, half, y, "Mul", share)

    def rotary(self, node: gs.Node) -> None:
        """RotaryEmbedding of x [B, S, heads * size] with a row of the tables for each token."""
        (x, *tables), y = list(node.inputs), node.outputs[0]
        path, heads = node.name.rpartition("/")[0], int(node.attrs["num_heads"])
        size = int(x.shape[2]) // heads
        rotary = int(node.attrs.get("rotary_embedding_dim", 0)) or size
        detach(node)
        apart = self._builder.inline(f"primitive.rotary.{heads}", [0, 0, heads, size])
        shape = (*x.shape[:2], heads, size)
        x = self.op(f"{path}/split/Reshape", [x, apart], shape, x.dtype)
        axis = self._builder.inline("primitive.axes.2", [2])
        cosine, sine = (
            self.op(f"{path}/{name}/Unsqueeze", [table, axis],
                    (*table.shape[:2], 1, table.shape[2]), table.dtype)
            for name, table in zip(("cosine", "sine"), tables, strict=True)
        )  # fmt: skip
        rotated = self.turned(path, x, (cosine, sine), rotary)
        whole = self._builder.inline(f"primitive.rotary.{heads * size}", [0, 0, heads * size])
        self._builder.node("Reshape", f"{path}/join/Reshape", [rotated, whole], [y])

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
        split = self._builder.inline(f"primitive.split.{'+'.join(map(str, sizes))}", sizes)
        pieces = [(dtype, (*x.shape[:-1], size)) for size in sizes]
        first, second, *rest = self._builder.node(
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
    """CachedAttention in operators that opset 17 has, and every later one."""

    def __init__(self, builder: GraphBuilder, positions: Positions) -> None:
        self._builder = builder
        self._ops = _Ops(builder)
        _, self._kv_heads, self._context, self._size = positions.cache_shape
        self._positions = positions
        self._rows: dict[str, gs.Variable] = {}  # rotary table -> its rows of this call
        self._slots: gs.Variable | None = None

    def lower(self, node: gs.Node) -> None:
        """
        q ─ rotation ─────────────────────────────┐
        k ─ rotation ─ ScatterND(past_key) ─┬─── MatMul ─ (cap) ─ mask ─ Softmax ─ MatMul ─ y
        v ─ ScatterND(past_value) ─┬────────│────────────────────────────────────────┘
                     present_value ┘        └ present_key
        """
        q, k, v, _, cosine, sine, past_key, past_value = list(node.inputs)
        y, present_key, present_value = list(node.outputs)
        attributes, path = node.attrs, node.name.rpartition("/")[0]
        detach(node)
        heads, rotary = attributes["num_heads"], attributes["rotary_size"]
        q = by_heads(self._builder, f"{path}/q_heads", q, heads, self._size)
        k = by_heads(self._builder, f"{path}/k_heads", k, self._kv_heads, self._size)
        v = by_heads(self._builder, f"{path}/v_heads", v, self._kv_heads, self._size)
        if rotary:
            q = self._rotated(f"{path}/q_rotary", q, cosine, sine, rotary)
            k = self._rotated(f"{path}/k_rotary", k, cosine, sine, rotary)
        self._append(f"{path}/key", past_key, k, present_key)
        self._append(f"{path}/value", past_value, v, present_value)
        scores = self._scores(path, q, present_key, attributes)
        shape = scores.shape
        mask = self._positions.mask(attributes.get("window", 0))
        axis = self._builder.inline("primitive.axes.2", [2])
        mask = self._ops.op(f"{path}/mask/Unsqueeze", [mask, axis], (BATCH, 1, 1, *mask.shape[2:]),
                            mask.dtype)  # fmt: skip
        lowest = self._ops.number(_LOWEST)
        scores = self._ops.op(f"{path}/Where", [mask, scores, lowest], shape, FLOAT32)
        shares = self._ops.op(f"{path}/Softmax", [scores], shape, FLOAT32, axis=-1)
        if y.dtype != FLOAT32:
            shares = self._ops.op(f"{path}/shares/Cast", [shares], shape, y.dtype, to=y.dtype)
        values = self._one_group(f"{path}/value", present_value)
        grouped = (BATCH, self._kv_heads, heads // self._kv_heads, SEQUENCE, self._size)
        attended = self._ops.op(f"{path}/values/MatMul", [shares, values], grouped, y.dtype)
        apart = self._builder.inline(f"primitive.heads.{heads}", [0, heads, -1, self._size])
        whole = (BATCH, heads, SEQUENCE, self._size)
        attended = self._ops.op(f"{path}/heads/Reshape", [attended, apart], whole, y.dtype)
        joined(self._builder, f"{path}/y_heads", attended, y)

    def _scores(
        self, path: str, q: gs.Variable, keys: gs.Variable, attributes: dict[str, Any]
    ) -> gs.Variable:
        """q·k * scale, with its soft cap: float32 [B, kv_heads, group, S, context].

        q is scaled before the product, so that float16 does not overflow in it.
        """
        ops, group = self._ops, attributes["num_heads"] // self._kv_heads
        grouped = (BATCH, self._kv_heads, group, SEQUENCE, self._size)
        scaled = self._builder.variable(f"{path}/q/scaled", q.dtype, q.shape)
        ops.finish(f"{path}/q", ops.wide(f"{path}/q", q), scaled, "Mul",
                   ops.number(attributes["scale"]))  # fmt: skip
        apart = self._builder.inline(f"primitive.group.{group}",
                                     [0, self._kv_heads, group, -1, self._size])  # fmt: skip
        q = ops.op(f"{path}/q/Reshape", [scaled, apart], grouped, q.dtype)
        keys = self._one_group(f"{path}/key", keys)
        turned = (*keys.shape[:3], self._size, self._context)
        keys = ops.op(f"{path}/key/Transpose", [keys], turned, q.dtype, perm=[0, 1, 2, 4, 3])
        shape = (*grouped[:-1], self._context)
        scores = ops.wide(path, ops.op(f"{path}/scores/MatMul", [q, keys], shape, q.dtype))
        cap = attributes.get("soft_cap")
        if cap is None:
            return scores
        scores = ops.op(f"{path}/cap/Div", [scores, ops.number(cap)], shape, FLOAT32)
        scores = ops.op(f"{path}/cap/Tanh", [scores], shape, FLOAT32)
        return ops.op(f"{path}/cap/Mul", [scores, ops.number(cap)], shape, FLOAT32)

    def _one_group(self, path: str, cache: gs.Variable) -> gs.Variable:
        """[B, kv_heads, context, size] ─ Unsqueeze ─ [B, kv_heads, 1, context, size]"""
        axis = self._builder.inline("primitive.axes.2", [2])
        shape = (BATCH, self._kv_heads, 1, self._context, self._size)
        return self._ops.op(f"{path}/Unsqueeze", [cache, axis], shape, cache.dtype)

    def _rotated(
        self, path: str, x: gs.Variable, cosine: gs.Constant, sine: gs.Constant, rotary: int
    ) -> gs.Variable:
        """Rotary embedding of x [B, heads, S, size], in float32."""
        tables = self._table_rows(cosine), self._table_rows(sine)
        rotated = self._ops.turned(path, self._ops.wide(path, x), tables, rotary)
        if x.dtype == FLOAT32:
            return rotated
        return self._ops.op(f"{path}/narrow/Cast", [rotated], x.shape, x.dtype, to=x.dtype)

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

    def _append(
        self, path: str, past: gs.Variable, update: gs.Variable, present: gs.Variable
    ) -> None:
        self._builder.node(
            "ScatterND", f"{path}/ScatterND", [past, self._cache_slots(), update], [present]
        )

    def _cache_slots(self) -> gs.Variable:
        """Indices that ScatterND writes to: (sequence, head, position), int64 [B, kv_heads, S, 3].

        positions ─ Shape ─ Range(B) ─ Reshape [B, 1, 1, 1] ─┐
        heads [kv_heads, 1, 1] ───────────────────────────── Concat, each added to zeros of the
        positions [B, S] ─ Unsqueeze [B, 1, S, 1] ───────────┘       whole shape
        """
        if self._slots is None:
            ops, path, ids = self._ops, "/slots", self._positions.ids()
            builder, kv_heads = self._builder, self._kv_heads
            shape: Dims = (BATCH, kv_heads, SEQUENCE, 1)

            def op(
                name: str, inputs: Sequence[gs.Tensor], result: Dims, **more: Any
            ) -> gs.Variable:
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
