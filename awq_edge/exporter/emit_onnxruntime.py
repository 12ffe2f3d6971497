"""A program in onnxruntime's operators: opset 21 and com.microsoft.

    quantized linears     MatMulNBits; those that read one tensor and are alike are one
    attention             GroupQueryAttention, past and present in one buffer; rotation inside, or
                          as RotaryEmbedding before it
    RMS norms             SimplifiedLayerNormalization, with a residual sum before it
                          SkipSimplifiedLayerNormalization

Source: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.emit_graph import GraphEmitter
from awq_edge.exporter.graph import (
    BATCH,
    CONTEXT,
    INT32,
    INT64,
    SEQUENCE,
    DecoderGraph,
    Operand,
    module_path,
)
from awq_edge.exporter.spec import GraphSpec
from awq_edge.program.program import Attention, Norm, Program
from awq_edge.program.storage import Storage
from awq_edge.program.stored import StoredLinear

OPSET = 21
IR_VERSION = 10  # the one that belongs to opset 21
MICROSOFT = "com.microsoft"
# GroupQueryAttention rotates heads whose size, and rotary part, are multiples of this.
_ROTARY_MULTIPLE = 16
# 1.22 has no 8-bit MatMulNBits below accuracy level 4, and computes it wrong in float16. Before
# 1.24 a local window sees one position more than local_window_size, and there are no 2 bits. (Found
# by the parity tests of this project under those versions.)
MINIMUM_VERSION, MINIMUM_VERSION_OF_WINDOWS_AND_TWO_BITS = "1.23", "1.24"


@dataclass(frozen=True)
class _Lengths:
    """seqlens_k: int32 [B], last valid position. total: int32 scalar. sequence: int64 [1], S."""

    seqlens_k: gs.Variable
    total: gs.Variable
    sequence: gs.Variable


class OnnxRuntimeEmitter(GraphEmitter):
    """minimum_version: the oldest onnxruntime that computes this graph right. scale_groups: scales
    of all MatMulNBits, of which the runtime keeps copies. Both are known once it is emitted."""

    routes_experts = True

    def __init__(
        self, program: Program, storage: Storage, spec: GraphSpec, accuracy_level: int
    ) -> None:
        super().__init__(program, storage, spec, OPSET)
        self._accuracy_level = accuracy_level
        self.minimum_version = MINIMUM_VERSION
        self.scale_groups = 0
        self._lengths: _Lengths
        self._shared: dict[str, gs.Variable] = {}  # made once, for all layers

    def emit(self) -> DecoderGraph:
        """The graph; its cache has as many positions as a session chooses (`--context`)."""
        target = super().emit()
        for tensor in (*target.graph.inputs, *target.graph.outputs):
            if tensor.name.startswith(("past.", "present.")):
                batch, heads, _, head_size = tensor.shape
                tensor.shape = (batch, heads, CONTEXT, head_size)
        return target

    def begin(self) -> None:
        """Lengths of the cache for GroupQueryAttention, once for all layers.

        input_ids, or inputs_embeds ─ Shape [1] ─┐
        past_length [B] ─────────────────────── Add ─┬─ Sub(1) ─ Cast ─ seqlens_k
                                                     └─ ReduceMax ─ Cast ─ total_sequence_length
        """
        path, tokens = "/lengths", self.target.graph.inputs[0]

        def op(name: str, inputs: list[Operand], *shape: int | str, **more: Any) -> gs.Variable:
            return self.op(f"{path}/{name}", inputs, shape, dtype=more.pop("to", INT64), **more)

        sequence = op("Shape", [tokens], 1, attributes={"start": 1, "end": 2})
        totals = op("Add", [self.past_length, sequence], BATCH)
        last = op("Sub", [totals, self.builder.inline("one", [1])], BATCH)
        narrow = {"to": INT32}
        seqlens = op("seqlens_k/Cast", [last], BATCH, attributes=narrow, to=INT32)
        longest = op("ReduceMax", [totals], attributes={"keepdims": 0})
        total = op("total/Cast", [longest], attributes=narrow, to=INT32)
        self._lengths = _Lengths(seqlens, total, sequence)

    def quantized(
        self, stored: StoredLinear, x: gs.Variable, output: gs.Variable | None
    ) -> gs.Variable:
        result = self.output_of(stored, x, output)
        roles = ("B", "scales", "zero_points", "g_idx", "bias")
        tensors = [stored.tensors.get(role) for role in roles]
        given = [None if tensor is None else self.builder.weight(tensor) for tensor in tensors]
        attributes = {
            "K": stored.in_features,
            "N": stored.out_features,
            "bits": stored.bits,
            "block_size": stored.group_size,
            "accuracy_level": self._accuracy_level,
        }
        name = f"{module_path(stored.name)}/MatMulNBits"
        self.builder.node("MatMulNBits", name, [x, *given], [result], attributes, MICROSOFT)
        self.scale_groups += stored.scale_groups
        if stored.bits == 2:
            self.minimum_version = MINIMUM_VERSION_OF_WINDOWS_AND_TWO_BITS
        return result

    def attend(
        self,
        attention: Attention,
        x: gs.Variable,
        past: Sequence[gs.Variable],
        present: Sequence[gs.Variable],
    ) -> gs.Variable:
        """
        (packed q k v, or q, k, v) ─ (norms of heads) ─ (RotaryEmbedding of q and k)
                                                        ─ GroupQueryAttention
        """
        path, size = module_path(attention.name), attention.head_size
        rotary = self.rotary_size(attention)
        inside = rotary > 0 and rotary % _ROTARY_MULTIPLE == 0 and size % _ROTARY_MULTIPLE == 0
        stored = self.storage.linears(attention.qkv)
        turned = self.turns is not None or (rotary > 0 and not inside)
        tables = self.tables(attention.rotation)
        if len(stored) == 1 and attention.q_norm is None and not turned:
            inputs: list[Operand | None] = [self.stored(stored[0], x), None, None]
        else:
            q, k, v = self.split(attention.qkv, stored, x)
            q = self.head_norm(attention.q_norm, q, attention.num_heads)
            k = self.head_norm(attention.k_norm, k, attention.num_kv_heads)
            if turned:
                rotate = self._rotated_by_token if self.turns is not None else self._rotated
                q = rotate(f"{path}/q_rotary", q, attention.num_heads, attention)
                k = rotate(f"{path}/k_rotary", k, attention.num_kv_heads, attention)
            inputs = [q, k, v]
        inputs += [*past, self._lengths.seqlens_k, self._lengths.total]
        inputs += tables if inside else []
        shape = (BATCH, SEQUENCE, attention.num_heads * size)
        output, *_ = self.builder.node(
            "GroupQueryAttention",
            f"{path}/GroupQueryAttention",
            inputs,
            [(self.dtype, shape), *present],
            self._group_query(attention, inside),
            MICROSOFT,
        )
        return output

    def _group_query(self, attention: Attention, inside: bool) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "num_heads": attention.num_heads,
            "kv_num_heads": attention.num_kv_heads,
            "scale": attention.scale,
            "do_rotary": int(inside),
            "rotary_interleaved": 0,
        }
        window = attention.window
        if window is not None and window < self.context:
            attributes["local_window_size"] = window
            self.minimum_version = MINIMUM_VERSION_OF_WINDOWS_AND_TWO_BITS
        if attention.soft_cap is not None:
            attributes["softcap"] = attention.soft_cap
        return attributes

    def rms_norm(
        self, path: str, x: gs.Variable, weight: gs.Constant, epsilon: float
    ) -> gs.Variable:
        name = f"{path}/SimplifiedLayerNormalization"
        attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
        return self.op(name, [x, weight], x.shape, attributes)

    def add_norm(
        self, norm: Norm, hidden: gs.Variable, branch: gs.Variable, name: str
    ) -> tuple[gs.Variable, gs.Variable]:
        """hidden, branch ─ SkipSimplifiedLayerNormalization ─┬─ norm
        └─ hidden + branch
        """
        if norm.kind != "rms":
            return super().add_norm(norm, hidden, branch, name)
        path = f"{module_path(norm.name)}/SkipSimplifiedLayerNormalization"
        (weight,) = (self.builder.weight(each) for each in self.storage.norm(norm))
        total = self.builder.variable(f"{name}/output_0", self.dtype, hidden.shape)
        empty = gs.Variable.empty()
        normed, *_ = self.builder.node(
            "SkipSimplifiedLayerNormalization",
            path,
            [hidden, branch, weight],
            [(self.dtype, hidden.shape), empty, empty, total],
            {"epsilon": norm.eps},
            MICROSOFT,
        )
        return total, normed

    def _rotated(self, path: str, x: gs.Variable, heads: int, attention: Attention) -> gs.Variable:
        """x [B, S, heads * head_size], turned by the rows of the tables at its positions."""
        inputs = [x, self._position_ids(), *self.tables(attention.rotation)]
        attributes = {"num_heads": heads, "interleaved": 0}
        rotary = self.rotary_size(attention)
        if rotary != attention.head_size:
            attributes["rotary_embedding_dim"] = rotary
        return self.op(f"{path}/RotaryEmbedding", inputs, x.shape, attributes, domain=MICROSOFT)

    def _rotated_by_token(
        self, path: str, x: gs.Variable, heads: int, attention: Attention
    ) -> gs.Variable:
        """x [B, S, heads * head_size], each token turned by its row: the rows of all, by their
        numbers."""
        assert self.turns is not None
        inputs = [x, self._row_numbers(x), *map(self._rows, self.turns)]
        attributes = {"num_heads": heads, "interleaved": 0}
        rotary = 2 * int(self.turns[0].shape[-1])
        if rotary != attention.head_size:
            attributes["rotary_embedding_dim"] = rotary
        return self.op(f"{path}/RotaryEmbedding", inputs, x.shape, attributes, domain=MICROSOFT)

    def _position_ids(self) -> gs.Variable:
        """past_length [B] ─ Unsqueeze [B, 1] ─ Add(Range(S) [S]) ─ [B, S]"""
        path, builder = "/position_ids", self.builder
        if path not in self._shared:
            scalar = builder.inline("shape.scalar", np.zeros(0))
            length = self._integers(f"{path}/Reshape", [self._lengths.sequence, scalar])
            limits = [builder.inline("zero.scalar", 0), length, builder.inline("one.scalar", 1)]
            steps = self._integers(f"{path}/Range", limits, SEQUENCE)
            axis = builder.inline("axes.1", [1])
            column = self._integers(f"{path}/Unsqueeze", [self.past_length, axis], BATCH, 1)
            ids = self._integers(f"{path}/Add", [column, steps], BATCH, SEQUENCE)
            self._shared[path] = ids
        return self._shared[path]

    def _rows(self, table: gs.Variable) -> gs.Variable:
        """[B, S, half] ─ Reshape ─ [B * S, half]"""
        if table.name not in self._shared:
            half = table.shape[-1]
            shape = self.builder.inline(f"shape.rows.{half}", [-1, half])
            rows = self.op(f"{table.name}/rows/Reshape", [table, shape], ("tokens", half))
            self._shared[table.name] = rows
        return self._shared[table.name]

    def _row_numbers(self, x: gs.Variable) -> gs.Variable:
        """0 to B * S - 1, int64 [B, S]"""
        path, builder = "/row_numbers", self.builder
        if path not in self._shared:
            shape = self.op(f"{path}/Shape", [x], (2,), {"end": 2}, INT64)
            count = self.op(f"{path}/ReduceProd", [shape], (), {"keepdims": 0}, INT64)
            limits = [builder.inline("zero.scalar", 0), count, builder.inline("one.scalar", 1)]
            flat = self._integers(f"{path}/Range", limits, "tokens")
            self._shared[path] = self._integers(f"{path}/Reshape", [flat, shape], BATCH, SEQUENCE)
        return self._shared[path]

    def _integers(self, name: str, inputs: list[Operand], *shape: int | str) -> gs.Variable:
        return self.op(name, inputs, shape, dtype=INT64)
