"""A mixture of experts as nodes, in two forms.

routed: every expert computes the tokens that are sent to it and no others. Rows are sorted by
expert, cut into one piece an expert, and put back. Nothing is read of an expert without tokens.

    x ─ router ─ Softmax ─ TopK ─┬─ experts of each token ─ order, counts
                                 └─ shares
                  ┌─ expert 0 ─┐
    x ─ Gather ─ Split ─ ... ─ Concat ─ Gather ─ Mul(shares) ─ ReduceSum
    (order)       └─ expert n ─┘      (order back)

masked, for runtimes without sizes that depend on data (how many rows an expert gets is known only
while it runs, which TensorRT's plugins, optimization profiles and CUDA graphs cannot follow): every
expert computes every token, and what a token did not ask for is left out. All experts are read.

    x ─ router ─ ... ─ shares of every expert [tokens, experts] ─ Split ─┐
    x ─┬─ expert 0 ─ Mul(its share) ─ Where(share > 0) ─┐                │
       └─ expert n ─ Mul(its share) ─ Where(share > 0) ─ Sum             │ (one column an expert)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, BOOL, FLOAT32, INT64, SEQUENCE, Dims, module_path
from awq_edge.program.program import Experts, Mlp
from awq_edge.program.weights import numpy_type

if TYPE_CHECKING:
    from awq_edge.exporter.emit_graph import GraphEmitter

# Pairs of a token and an expert that it is sent to: batch * sequence * per_token.
ROUTES = "routes"
TOKENS = "tokens"


def expert_nodes(emitter: GraphEmitter, experts: Experts, x: gs.Variable) -> gs.Variable:
    """The experts of one block, [B, S, hidden], in the form of the emitter's runtime."""
    layer = _Routed if emitter.routes_experts else _Masked
    return layer(emitter, experts).emit(x)


class _Layer:
    """What both forms share: the router, and an expert on rows of tokens."""

    def __init__(self, emitter: GraphEmitter, experts: Experts) -> None:
        self._emitter = emitter
        self._builder = emitter.builder
        self._experts = experts
        self._path = module_path(experts.name)
        self._hidden = experts.router.in_features

    def emit(self, x: gs.Variable) -> gs.Variable:
        """[B, S, hidden] of the shape of x."""
        shares, chosen = self._routes(x)
        shape = self._builder.inline(f"shape.rows.{self._hidden}", [-1, self._hidden])
        tokens = self._op("tokens/Reshape", [x, shape], (TOKENS, self._hidden))
        total = self._sum(tokens, shares, chosen)
        like = self._integers("Shape", [x], 3)
        return self._emitter.op(f"{self._path}/Reshape", [total, like], x.shape)

    def _sum(self, tokens: gs.Variable, shares: gs.Variable, chosen: gs.Variable) -> gs.Variable:
        """The shares' sum of the experts' outputs [tokens, hidden]; see `_routes`."""
        raise NotImplementedError

    def _routes(self, x: gs.Variable) -> tuple[gs.Variable, gs.Variable]:
        """Shares of each token's experts [tokens, k, 1], and their numbers int64 [tokens * k].

        x ─ router ─ Cast(float32) ─ Softmax ─ TopK ─ (shares / their sum) ─ Cast
        """
        emitter, builder, per_token = self._emitter, self._builder, self._experts.per_token
        router = self._experts.router
        path, every = module_path(router.name), (BATCH, SEQUENCE, router.out_features)
        scores = emitter.cast(f"{path}/in", emitter.linear(router, x), FLOAT32)
        scores = emitter.op(f"{path}/Softmax", [scores], every, {"axis": -1}, FLOAT32)
        few: Dims = (BATCH, SEQUENCE, per_token)
        shares, chosen = builder.node(
            "TopK",
            f"{path}/TopK",
            [scores, builder.inline(f"top.{per_token}", [per_token])],
            [(FLOAT32, few), (INT64, few)],
            {"axis": -1},
        )
        if self._experts.is_normalised:
            one, last = (BATCH, SEQUENCE, 1), builder.inline("axes.last", [-1])
            total = emitter.op(f"{path}/ReduceSum", [shares, last], one, None, FLOAT32)
            shares = emitter.op(f"{path}/Div", [shares, total], few, None, FLOAT32)
        shares = emitter.cast(f"{path}/out", shares, emitter.dtype)
        columns = builder.inline(f"shape.shares.{per_token}", [-1, per_token, 1])
        flat = builder.inline("shape.flat", [-1])
        return (
            emitter.op(f"{path}/shares/Reshape", [shares, columns], (TOKENS, per_token, 1)),
            emitter.op(f"{path}/chosen/Reshape", [chosen, flat], (ROUTES,), dtype=INT64),
        )

    def _expert(self, expert: Mlp, x: gs.Variable) -> gs.Variable:
        """One expert on rows of tokens [n, hidden]."""
        return self._emitter.linear(expert.out, self._emitter.gated(expert, x))

    def _op(self, name: str, inputs: list[Any], shape: Dims, **more: Any) -> gs.Variable:
        return self._emitter.op(f"{self._path}/{name}", inputs, shape, **more)

    def _integers(self, name: str, inputs: list[Any], *shape: int | str) -> gs.Variable:
        return self._op(name, inputs, shape, dtype=INT64)


class _Routed(_Layer):
    def _sum(self, tokens: gs.Variable, shares: gs.Variable, chosen: gs.Variable) -> gs.Variable:
        builder, per_token = self._builder, self._experts.per_token
        order, back, counts = self._sorted(chosen)
        divisor = builder.inline(f"per_token.{per_token}", per_token)
        token = self._integers("tokens/Div", [order, divisor], ROUTES)
        wide = (ROUTES, self._hidden)
        rows = self._op("tokens/Gather", [tokens, token], wide)
        # The number of tokens of an expert: each is another number, of which there may be none.
        pieces = [
            (self._emitter.dtype, (f"tokens.{self._experts.name}.{number}", self._hidden))
            for number in range(len(self._experts.experts))
        ]
        given = builder.node("Split", f"{self._path}/Split", [rows, counts], pieces, {"axis": 0})
        done = [self._expert(*each) for each in zip(self._experts.experts, given, strict=True)]
        joined = self._op("Concat", done, wide, attributes={"axis": 0})
        routes = self._op("back/Gather", [joined, back], wide)
        shape = builder.inline(f"shape.routes.{per_token}", [-1, per_token, self._hidden])
        by_token = (TOKENS, per_token, self._hidden)
        weighted = self._op("routes/Reshape", [routes, shape], by_token)
        weighted = self._op("Mul", [weighted, shares], by_token)
        axis, keep = builder.inline("axes.1", [1]), {"keepdims": 0}
        return self._op("ReduceSum", [weighted, axis], (TOKENS, self._hidden), attributes=keep)

    def _sorted(self, chosen: gs.Variable) -> tuple[gs.Variable, gs.Variable, gs.Variable]:
        """Routes in the order of their experts [routes], the way back [routes], and how many each
        expert has [experts].

        chosen ─┬─ TopK(smallest first) ─ order ─ TopK(smallest first) ─ back
                └─ Equal(0..experts-1) ─ Cast ─ ReduceSum ─ counts
        """
        builder, number = self._builder, len(self._experts.experts)
        count = self._integers("route/Shape", [chosen], 1)
        order = self._argsort("route/order/TopK", chosen, count)
        back = self._argsort("route/back/TopK", order, count)
        column = self._integers(
            "route/Unsqueeze", [chosen, builder.inline("axes.1", [1])], ROUTES, 1
        )
        every = builder.inline(f"experts.{number}", np.arange(number))
        hits = self._op("route/Equal", [column, every], (ROUTES, number), dtype=BOOL)
        to = {"to": INT64}
        ones = self._op("route/Cast", [hits], (ROUTES, number), attributes=to, dtype=INT64)
        first, keep = builder.inline("axes.0", [0]), {"keepdims": 0}
        counts = self._op("route/ReduceSum", [ones, first], (number,), attributes=keep, dtype=INT64)
        return order, back, counts

    def _argsort(self, name: str, values: gs.Variable, count: gs.Variable) -> gs.Variable:
        """Indices that sort `values` [routes]; equal ones stay in order, as TopK promises."""
        _, indices = self._builder.node(
            "TopK",
            f"{self._path}/{name}",
            [values, count],
            [(INT64, (ROUTES,))] * 2,
            {"axis": 0, "largest": 0},
        )
        return indices


class _Masked(_Layer):
    def _sum(self, tokens: gs.Variable, shares: gs.Variable, chosen: gs.Variable) -> gs.Variable:
        builder, shape = self._builder, (TOKENS, self._hidden)
        columns = self._columns(shares, chosen)
        kind = numpy_type(self._emitter.storage.form.dtype)
        zero = builder.inline("experts.zero", [0], kind)
        parts = []
        for number, (expert, share) in enumerate(zip(self._experts.experts, columns, strict=True)):
            path = f"masked.{number}"
            weighted = self._op(f"{path}/Mul", [self._expert(expert, tokens), share], shape)
            hit = self._op(f"{path}/Greater", [share, zero], (TOKENS, 1), dtype=BOOL)
            # What is not asked for may have overflowed: 0 times it is no 0.
            parts.append(self._op(f"{path}/Where", [hit, weighted, zero], shape))
        return self._op("masked/Sum", parts, shape)

    def _columns(self, shares: gs.Variable, chosen: gs.Variable) -> list[gs.Variable]:
        """The share of each expert in every token, 0 where it is not sent there: [tokens, 1].

        chosen [tokens, k, 1] ─ Equal(0..experts-1) ─ Cast ─ Mul(shares) ─ ReduceSum(k) ─ Split
        """
        builder, number = self._builder, len(self._experts.experts)
        per_token, dtype = self._experts.per_token, self._emitter.dtype
        column = builder.inline(f"experts.column.{per_token}", [-1, per_token, 1])
        every = builder.inline(f"experts.numbers.{number}", np.arange(number))
        wide: Dims = (TOKENS, per_token, number)
        places = self._integers("masked/Reshape", [chosen, column], TOKENS, per_token, 1)
        hits = self._op("masked/Equal", [places, every], wide, dtype=BOOL)
        ones = self._op("masked/Cast", [hits], wide, attributes={"to": dtype})
        weighted = self._op("masked/Mul", [ones, shares], wide)
        axis, keep = builder.inline("experts.axis", [1]), {"keepdims": 0}
        dense = self._op("masked/ReduceSum", [weighted, axis], (TOKENS, number), attributes=keep)
        sizes = builder.inline(f"experts.ones.{number}", [1] * number)
        outputs = [(dtype, (TOKENS, 1))] * number
        name = f"{self._path}/masked/Split"
        return builder.node("Split", name, [dense, sizes], outputs, {"axis": 1})
