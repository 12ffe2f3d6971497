"""The onnxruntime lowering: opset 21 and onnxruntime's own operators (com.microsoft).

    W4A16Linear            MatMulNBits; those that read one tensor are merged into one
    CachedAttention        GroupQueryAttention, past and present in one buffer
    RMSNormalization       SimplifiedLayerNormalization, with a residual Add before it
                           SkipSimplifiedLayerNormalization

Source: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import TensorProto

from awq_edge.exporter.canonical import build_canonical_graph
from awq_edge.exporter.graph import BATCH, CONTEXT, DecoderGraph, GraphBuilder
from awq_edge.exporter.lowered import Lowered, lowered_graph
from awq_edge.exporter.matmul_nbits import MatMulNBits
from awq_edge.exporter.onnxruntime_rotation import (
    MICROSOFT,
    Rotations,
    position_ids,
    rotates_apart,
    rotates_inside,
)
from awq_edge.exporter.passes import detach
from awq_edge.exporter.spec import GraphSpec
from awq_edge.exporter.weights import cast
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import Recipe

OPSET = 21
IR_VERSION = 10  # the one that belongs to opset 21
INT32, INT64 = int(TensorProto.INT32), int(TensorProto.INT64)
# 1.22 has no 8-bit MatMulNBits below accuracy level 4, and computes it wrong in float16. Before
# 1.24 a local window sees one position more than local_window_size, and there are no 2 bits. (Found
# by the parity tests of this project under those versions.)
MINIMUM_VERSION, MINIMUM_VERSION_OF_WINDOWS_AND_TWO_BITS = "1.23", "1.24"


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> Lowered:
    """The graph of a checkpoint for onnxruntime."""
    lowered = lower(build_canonical_graph(checkpoint, spec), recipe)
    return lowered_graph(
        lowered,
        IR_VERSION,
        minimum_version=minimum_version(lowered),
        accuracy_level=recipe.runtime.accuracy_level,
        scale_groups=_scale_groups(lowered),
    )


def lower(canonical: DecoderGraph, recipe: Recipe) -> DecoderGraph:
    """The graph for onnxruntime. `canonical` is left as it was."""
    return _Lowering(canonical.copy(), recipe.runtime.accuracy_level).run()


def minimum_version(lowered: DecoderGraph) -> str:
    """The oldest onnxruntime that computes this graph right."""
    nodes = lowered.graph.nodes
    windows = any("local_window_size" in node.attrs for node in nodes)
    two_bits = any(node.op == "MatMulNBits" and node.attrs["bits"] == 2 for node in nodes)
    if windows or two_bits:
        return MINIMUM_VERSION_OF_WINDOWS_AND_TWO_BITS
    return MINIMUM_VERSION


def _scale_groups(lowered: DecoderGraph) -> int:
    """Scales of all MatMulNBits, of which the runtime keeps copies."""
    return sum(
        node.attrs["N"] * (node.attrs["K"] // node.attrs["block_size"])
        for node in lowered.graph.nodes
        if node.op == "MatMulNBits"
    )


@dataclass(frozen=True)
class _Lengths:
    """seqlens_k: int32 [B], last valid position. total: int32 scalar. position_ids: int64 [B, S],
    made where a rotation outside the attention needs it."""

    seqlens_k: gs.Variable
    total: gs.Variable
    position_ids: gs.Variable | None


class _Lowering:
    """Walks the canonical nodes in order and appends the lowered nodes of each."""

    def __init__(self, work: DecoderGraph, accuracy_level: int) -> None:
        self._work = work
        self._accuracy_level = accuracy_level
        self._builder = GraphBuilder(work)
        self._nodes = list(work.graph.nodes)
        self._dtype = next(t.dtype for t in work.graph.outputs if t.name == "logits")
        self._merged = _mergeable(self._nodes)
        self._residuals: dict[str, gs.Node] = {}  # sum -> the Add that is left to its norm
        self._packed: dict[str, gs.Variable] = {}  # CachedAttention node -> packed q, k, v
        self._rotations = Rotations(self._builder, self._dtype)

    def run(self) -> DecoderGraph:
        graph = self._work.graph
        graph.nodes.clear()
        self._lengths = self._sequence_lengths()
        handlers = {
            "W4A16Linear": self._linear,
            "Split": self._split,
            "CachedAttention": self._attention,
            "RotaryEmbedding": self._rotations.by_token,
            "RMSNormalization": self._norm,
            "Add": self._add,
        }
        for node in self._nodes:
            handler = handlers.get(node.op)
            if handler is None:
                graph.nodes.append(node)
            else:
                handler(node)
        self._free_context()
        graph.opset, graph.import_domains = OPSET, None
        return self._work

    def _free_context(self) -> None:
        """Let a session choose fewer cache positions than were exported: `--context`."""
        graph = self._work.graph
        for tensor in (*graph.inputs, *graph.outputs):
            if tensor.name.startswith(("past.", "present.")):
                batch, heads, _, head_size = tensor.shape
                tensor.shape = (batch, heads, CONTEXT, head_size)

    def _sequence_lengths(self) -> _Lengths:
        """Lengths of the cache for GroupQueryAttention, once for all layers.

        input_ids, or inputs_embeds ─ Shape [1] ─┐
        past_length [B] ─────────────────────── Add ─┬─ Sub(1) ─ Cast ─ seqlens_k
                                                     └─ ReduceMax ─ Cast ─ total_sequence_length
        """
        builder, path = self._builder, "/lengths"
        inputs = {tensor.name: tensor for tensor in self._work.graph.inputs}
        past = inputs["past_length"]
        tokens = self._work.graph.inputs[0]
        (sequence,) = builder.node(
            "Shape", f"{path}/Shape", [tokens], [(INT64, (1,))], {"start": 1, "end": 2}
        )
        (totals,) = builder.node("Add", f"{path}/Add", [past, sequence], [(INT64, (BATCH,))])
        one = builder.inline("one", [1])
        (last,) = builder.node("Sub", f"{path}/Sub", [totals, one], [(INT64, (BATCH,))])
        (seqlens,) = builder.node(
            "Cast", f"{path}/seqlens_k/Cast", [last], [(INT32, (BATCH,))], {"to": INT32}
        )
        (longest,) = builder.node(
            "ReduceMax", f"{path}/ReduceMax", [totals], [(INT64, ())], {"keepdims": 0}
        )
        (total,) = builder.node(
            "Cast", f"{path}/total/Cast", [longest], [(INT32, ())], {"to": INT32}
        )
        apart = any(n.op == "CachedAttention" and rotates_apart(n) for n in self._nodes)
        ids = position_ids(builder, past, sequence) if apart else None
        return _Lengths(seqlens, total, ids)

    def _linear(self, node: gs.Node) -> None:
        """Linears of one input:

            ┌─ W4A16Linear ─ q                         ┌─ q
        x ──┼─ W4A16Linear ─ k   ->   x ─ MatMulNBits ─┼─ k   (Split, or packed into the attention)
            └─ W4A16Linear ─ v                         └─ v
        """
        group = self._merged.get(node.name, [node])
        if group[0] is not node:
            return  # done with the first of its group
        weights = [MatMulNBits.of(item, self._work.weights) for item in group]
        outputs = [item.outputs[0] for item in group]
        consumer = _packing_attention(outputs)
        x = node.inputs[0]
        for item in group:
            detach(item)
        if len(group) == 1:
            self._matmul_nbits(node.name.rpartition("/")[0], x, weights[0], outputs[0])
            return
        path = _merged_path(group)
        merged = MatMulNBits.merged(path.removeprefix("/").replace("/", "."), weights)
        output = self._builder.variable(
            f"{path}/output_0", self._dtype, (*x.shape[:-1], merged.out_features)
        )
        self._matmul_nbits(path, x, merged, output)
        if consumer is not None:
            self._packed[consumer.name] = output
            return
        sizes = [weight.out_features for weight in weights]
        split = self._builder.inline(f"split.{'+'.join(map(str, sizes))}", sizes)
        self._builder.node("Split", f"{path}/Split", [output, split], outputs, {"axis": -1})

    def _matmul_nbits(
        self, path: str, x: gs.Variable, weight: MatMulNBits, output: gs.Variable
    ) -> None:
        container = weight.container_bits(self._accuracy_level, self._dtype)
        tensors = [
            None if w is None else self._builder.weight(w)
            for w in weight.inputs(container, self._dtype)
        ]
        attributes = {
            "K": weight.in_features,
            "N": weight.out_features,
            "bits": container,
            "block_size": weight.block_size,
            "accuracy_level": self._accuracy_level,
        }
        self._builder.node(
            "MatMulNBits", f"{path}/MatMulNBits", [x, *tensors], [output], attributes, MICROSOFT
        )

    def _split(self, node: gs.Node) -> None:
        """A fused linear's q, k and v go into the attention packed, without a Split."""
        consumer = _packing_attention(node.outputs)
        if consumer is None:
            self._work.graph.nodes.append(node)
            return
        self._packed[consumer.name] = node.inputs[0]
        detach(node)

    def _attention(self, node: gs.Node) -> None:
        """CachedAttention:

        (packed q k v, or q, k, v) ─ (RotaryEmbedding of q and k) ─ GroupQueryAttention
        """
        q, k, v, _, cosine, sine, past_key, past_value = list(node.inputs)
        outputs, attributes = list(node.outputs), node.attrs
        inside, apart = rotates_inside(node), rotates_apart(node)
        packed, lengths = self._packed.get(node.name), self._lengths
        path = node.name.rpartition("/")[0]
        detach(node)
        tables = [self._table(table) for table in (cosine, sine) if inside or apart]
        if apart:
            sizes, ids = (attributes["head_size"], attributes["rotary_size"]), lengths.position_ids
            rotate, heads = self._rotations.by_position, attributes["num_heads"]
            q = rotate(f"{path}/q_rotary", q, ids, tables, heads, sizes)
            k = rotate(f"{path}/k_rotary", k, ids, tables, attributes["num_kv_heads"], sizes)
        inputs = [*((q, k, v) if packed is None else (packed, None, None)), past_key, past_value]
        inputs += [lengths.seqlens_k, lengths.total, *(tables if inside else ())]
        group_query = {
            "num_heads": attributes["num_heads"],
            "kv_num_heads": attributes["num_kv_heads"],
            "scale": attributes["scale"],
            "do_rotary": int(inside),
            "rotary_interleaved": 0,
        }
        for ours, theirs in (("window", "local_window_size"), ("soft_cap", "softcap")):
            if ours in attributes:
                group_query[theirs] = attributes[ours]
        self._builder.node(
            "GroupQueryAttention",
            f"{path}/GroupQueryAttention",
            inputs,
            outputs,
            group_query,
            MICROSOFT,
        )

    def _table(self, table: gs.Constant) -> gs.Constant:
        """A rotary table in the activations' type."""
        return self._builder.weight(cast(self._work.weights[table.name], self._dtype))

    def _add(self, node: gs.Node) -> None:
        """A residual Add whose sum a norm reads is fused into the norm."""
        total = node.outputs[0]
        is_residual = all(isinstance(tensor, gs.Variable) for tensor in node.inputs)
        if is_residual and any(reader.op == "RMSNormalization" for reader in total.outputs):
            self._residuals[total.name] = node
            return
        self._work.graph.nodes.append(node)

    def _norm(self, node: gs.Node) -> None:
        """RMSNormalization, statistics in float32 in both forms:

        x ─ SimplifiedLayerNormalization        a, b ─ SkipSimplifiedLayerNormalization ─┬─ norm
                                                                                        └─ a + b
        """
        path, (x, scale) = node.name.rpartition("/")[0], node.inputs
        output, epsilon = node.outputs[0], node.attrs["epsilon"]
        residual = self._residuals.pop(x.name, None)
        detach(node)
        if residual is None:
            self._builder.node(
                "SimplifiedLayerNormalization",
                f"{path}/SimplifiedLayerNormalization",
                [x, scale],
                [output],
                {"axis": -1, "epsilon": epsilon, "stash_type": 1},
            )
            return
        addends, empty = list(residual.inputs), gs.Variable.empty()
        detach(residual)
        self._builder.node(
            "SkipSimplifiedLayerNormalization",
            f"{path}/SkipSimplifiedLayerNormalization",
            [*addends, scale],
            [output, empty, empty, x],
            {"epsilon": epsilon},
            MICROSOFT,
        )


def _mergeable(nodes: list[gs.Node]) -> dict[str, list[gs.Node]]:
    """W4A16Linear nodes by name -> all nodes of the same input, bits, groups and kind."""
    groups: dict[tuple[object, ...], list[gs.Node]] = {}
    for node in nodes:
        if node.op == "W4A16Linear":
            absent = [tensor.is_empty() for tensor in node.inputs]
            key = (node.inputs[0].name, node.attrs["bits"], node.attrs["group_size"], *absent)
            groups.setdefault(key, []).append(node)
    return {node.name: group for group in groups.values() for node in group}


def _packing_attention(outputs: list[gs.Variable]) -> gs.Node | None:
    """The CachedAttention that reads exactly these outputs, unrotated, as q, k, v."""
    consumers = [tensor.outputs for tensor in outputs]
    if len(outputs) != 3 or any(len(nodes) != 1 for nodes in consumers):
        return None
    node = consumers[0][0]
    if node.op != "CachedAttention" or rotates_apart(node):
        return None
    same = all(a is b for a, b in zip(node.inputs[:3], outputs, strict=True))
    return node if same else None


def _merged_path(group: list[gs.Node]) -> str:
    """/model/layers.0/self_attn/q_proj+k_proj+v_proj"""
    paths = [node.name.rpartition("/")[0] for node in group]
    parent = paths[0].rpartition("/")[0]
    return f"{parent}/{'+'.join(path.rpartition('/')[2] for path in paths)}"
