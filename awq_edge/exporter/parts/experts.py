"""A mixture of experts in the place of the MLP, in a routed form.

Every expert computes the tokens that are sent to it and no others: rows are sorted by expert, cut
into one piece an expert, and put back. Nothing is read of the weights of an expert without tokens.

    x ─ router ─ Softmax ─ TopK ─┬─ experts of each token ─ order, counts
                                 └─ shares
                  ┌─ expert 0 ─┐
    x ─ Gather ─ Split ─ ... ─ Concat ─ Gather ─ Mul(shares) ─ ReduceSum
    (order)       └─ expert n ─┘      (order back)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from awq_edge.exporter.graph import BATCH, SEQUENCE, module_path
from awq_edge.exporter.parts.building import INT64, Building, parent_of
from awq_edge.exporter.parts.linears import block_linear, matmul
from awq_edge.exporter.parts.mlp import activated
from awq_edge.exporter.weights import FLOAT32
from awq_edge.model.archs.base import Experts
from awq_edge.model.archs.decoder import MixtureOfExperts

_BOOL = int(TensorProto.BOOL)
# Pairs of a token and an expert that it is sent to: batch * sequence * experts_per_token.
ROUTES = "routes"


def experts(building: Building, layer: int, x: gs.Variable) -> gs.Variable:
    """The experts of one block, [B, S, hidden]; see the module."""
    return _Layer(building, layer).build(x)


class _Layer:
    def __init__(self, building: Building, layer: int) -> None:
        moe, names = building.decoder.moe, building.arch.experts
        assert moe is not None and names is not None
        self._moe: MixtureOfExperts = moe
        self._names: Experts = names
        self._building, self._layer, self._builder = building, layer, building.builder
        prefix = building.decoder.layer_prefix(layer)
        self._router = f"{prefix}.{names.router}"
        self._path = module_path(parent_of(prefix, names.router))
        self._hidden = building.decoder.hidden_size

    def build(self, x: gs.Variable) -> gs.Variable:
        building, path, per_token = self._building, self._path, self._moe.experts_per_token
        shares, chosen = self._routes(x)
        order, back, counts = self._sorted(chosen)
        rows = self._of_tokens(x, order)
        pieces = [(building.dtype, (self._rows_of(e), self._hidden)) for e in self._numbers]
        given = self._builder.node("Split", f"{path}/Split", [rows, counts], pieces, {"axis": 0})
        done = [self._expert(e, tokens) for e, tokens in zip(self._numbers, given, strict=True)]
        wide = (ROUTES, self._hidden)
        joined = building.op(f"{path}/Concat", done, wide, {"axis": 0})
        routes = building.op(f"{path}/back/Gather", [joined, back], wide)
        shape = self._builder.inline(f"shape.routes.{per_token}", [-1, per_token, self._hidden])
        tokens = ("tokens", per_token, self._hidden)
        by_token = building.op(f"{path}/routes/Reshape", [routes, shape], tokens)
        weighted = building.op(f"{path}/Mul", [by_token, shares], tokens)
        total = building.op(
            f"{path}/ReduceSum",
            [weighted, self._builder.inline("axes.1", [1])],
            ("tokens", self._hidden),
            {"keepdims": 0},
        )
        like = building.op(f"{path}/Shape", [x], (3,), dtype=INT64)
        return building.op(f"{path}/Reshape", [total, like], x.shape)

    @property
    def _numbers(self) -> range:
        return range(self._moe.num_experts)

    def _rows_of(self, expert: int) -> str:
        """The name of the number of tokens of an expert; each is another number."""
        return f"tokens.{self._layer}.{expert}"

    def _routes(self, x: gs.Variable) -> tuple[gs.Variable, gs.Variable]:
        """Shares of each token's experts [tokens, k, 1], and their numbers [routes].

        x ─ router ─ Cast(float32) ─ Softmax ─ TopK ─ (shares / their sum) ─ Cast
        """
        building, builder = self._building, self._builder
        path, per_token = module_path(self._router), self._moe.experts_per_token
        every = (BATCH, SEQUENCE, self._moe.num_experts)
        raw = builder.variable(f"{path}/output_0", building.dtype, every)
        matmul(building, self._router, f"{self._router}.weight", x, "blocks", raw)
        scores = raw
        if building.dtype != FLOAT32:
            scores = building.op(f"{path}/in/Cast", [raw], every, {"to": FLOAT32}, FLOAT32)
        scores = building.op(f"{path}/Softmax", [scores], every, {"axis": -1}, FLOAT32)
        few = (BATCH, SEQUENCE, per_token)
        shares, chosen = builder.node(
            "TopK",
            f"{path}/TopK",
            [scores, builder.inline(f"top.{per_token}", [per_token])],
            [(FLOAT32, few), (INT64, few)],
            {"axis": -1},
        )
        if self._moe.normalised:
            one, last = (BATCH, SEQUENCE, 1), builder.inline("axes.last", [-1])
            total = building.op(f"{path}/ReduceSum", [shares, last], one, None, FLOAT32)
            shares = building.op(f"{path}/Div", [shares, total], few, None, FLOAT32)
        if building.dtype != FLOAT32:
            shares = building.op(f"{path}/out/Cast", [shares], few, {"to": building.dtype})
        columns = builder.inline(f"shape.shares.{per_token}", [-1, per_token, 1])
        flat = builder.inline("shape.flat", [-1])
        return (
            building.op(f"{path}/shares/Reshape", [shares, columns], ("tokens", per_token, 1)),
            self._integers(f"{path}/chosen/Reshape", [chosen, flat], ROUTES),
        )

    def _sorted(self, chosen: gs.Variable) -> tuple[gs.Variable, gs.Variable, gs.Variable]:
        """Routes in the order of their experts [routes], the way back [routes], and how many each
        expert has [experts].

        chosen ─┬─ TopK(smallest first) ─ order ─ TopK(smallest first) ─ back
                └─ Equal(0..experts-1) ─ Cast ─ ReduceSum ─ counts
        """
        path, number = f"{self._path}/route", self._moe.num_experts
        count = self._building.op(f"{path}/Shape", [chosen], (1,), dtype=INT64)
        order = self._argsort(f"{path}/order/TopK", chosen, count)
        back = self._argsort(f"{path}/back/TopK", order, count)
        column = self._integers(
            f"{path}/Unsqueeze", [chosen, self._builder.inline("axes.1", [1])], ROUTES, 1
        )
        every = self._builder.inline(f"experts.{number}", np.arange(number))
        hits = self._building.op(f"{path}/Equal", [column, every], (ROUTES, number), dtype=_BOOL)
        ones = self._building.op(
            f"{path}/Cast", [hits], (ROUTES, number), {"to": INT64}, dtype=INT64
        )
        first = self._builder.inline("axes.0", [0])
        counts = self._building.op(
            f"{path}/ReduceSum", [ones, first], (number,), {"keepdims": 0}, dtype=INT64
        )
        return order, back, counts

    def _argsort(self, name: str, values: gs.Variable, count: gs.Variable) -> gs.Variable:
        """Indices that sort `values` [routes]; equal ones stay in order, as TopK promises."""
        _, indices = self._builder.node(
            "TopK", name, [values, count], [(INT64, (ROUTES,))] * 2, {"axis": 0, "largest": 0}
        )
        return indices

    def _of_tokens(self, x: gs.Variable, order: gs.Variable) -> gs.Variable:
        """The row of x that each route is of, in the order of experts: [routes, hidden]."""
        building, builder, path = self._building, self._builder, self._path
        shape = builder.inline(f"shape.rows.{self._hidden}", [-1, self._hidden])
        rows = building.op(f"{path}/tokens/Reshape", [x, shape], ("tokens", self._hidden))
        per_token = self._moe.experts_per_token
        divisor = builder.inline(f"per_token.{per_token}", per_token)
        token = self._integers(f"{path}/tokens/Div", [order, divisor], ROUTES)
        return building.op(f"{path}/tokens/Gather", [rows, token], (ROUTES, self._hidden))

    def _expert(self, expert: int, x: gs.Variable) -> gs.Variable:
        """One expert on its tokens [n, hidden], of which there may be none."""
        building, layer = self._building, self._layer
        share = self._moe.experts_per_token / self._moe.num_experts
        gate, up = (
            block_linear(building, layer, name.format(expert=expert), x, share)
            for name in self._names.mlp_in
        )
        name = self._names.mlp_out.format(expert=expert)
        prefix = building.decoder.layer_prefix(layer)
        path = module_path(parent_of(prefix, name))
        product = building.op(f"{path}/Mul", [activated(building, path, gate), up], gate.shape)
        return block_linear(building, layer, name, product, share)

    def _integers(self, name: str, inputs: list[Any], *shape: int | str) -> gs.Variable:
        return self._building.op(name, inputs, shape, dtype=INT64)
