"""The two operators as TensorRT's plugin takes them: `awq_edge/tensorrt/contract.py`.

W4A16Linear, one or several          W4A16Linear in the layout of the kernels
... and silu(gate) * up behind       its epilogue
CachedAttention                      CachedAttention, q, k and v in one where they are merged
... and norms of q's and k's heads   its qk_norm
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import DecoderGraph, GraphBuilder
from awq_edge.exporter.kernel_weights import kernel_weight
from awq_edge.exporter.passes import LinearGroup, detach, linear_groups, producer, rewrite
from awq_edge.kernels.interface import LAYOUT_VERSION, Epilogue
from awq_edge.tensorrt.contract import (
    CACHED_ATTENTION,
    DOMAIN,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    W4A16_LINEAR,
)
from awq_edge.tensorrt.op_contract import Number, Op


def plugin_linears(work: DecoderGraph, builder: GraphBuilder) -> None:
    """Every W4A16Linear becomes the plugin's, or a part of one."""
    _Linears(work, builder).run()


def plugin_attention(work: DecoderGraph, builder: GraphBuilder) -> None:
    """Every CachedAttention becomes the plugin's, with the norms of heads that lie before it."""
    _Attention(work, builder).run()


def _plugin_node(
    builder: GraphBuilder,
    op: Op,
    name: str,
    inputs: list[gs.Variable | gs.Constant],
    outputs: list[gs.Variable],
    given: dict[str, Number],
) -> None:
    """Append a node of the plugin; attributes outside the contract raise ConfigError here already,
    not when TensorRT parses it. Defaults are written too: its parser warns about each that is not.
    """
    values = op.read(given)
    op.check_count(values, len(inputs))
    identity = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACE}
    builder.node(op.name, name, inputs, outputs, values | identity, DOMAIN)


class _Linears:
    def __init__(self, work: DecoderGraph, builder: GraphBuilder) -> None:
        self._work = work
        self._builder = builder
        self._groups = linear_groups(work)

    def run(self) -> None:
        rewrite(self._work, {"W4A16Linear": self._linear})

    def _linear(self, node: gs.Node) -> None:
        """
            ┌─ W4A16Linear ─ q                         ┌─ q
        x ──┼─ W4A16Linear ─ k   ->   x ─ W4A16Linear ─┼─ k   (Split; where the attention takes all
            └─ W4A16Linear ─ v                         └─ v    three, it goes away again)

            ┌─ W4A16Linear ─┬─ Sigmoid ─ Mul ─┐
        x ──┤               └─────────────┘   Mul   ->   x ─ W4A16Linear(epilogue)
            └─ W4A16Linear ───────────────────┘
        """
        group = self._groups[node.name]
        x, dtype = node.inputs[0], node.outputs[0].dtype
        outputs = [item.outputs[0] for item in group.nodes]
        if group.silu is not None:
            outputs = [group.silu[2].outputs[0]]
            detach(*group.silu)
        detach(*group.nodes)
        if len(outputs) == 1:
            self._plugin(group, x, outputs[0])
            return
        sizes = [int(codes.shape[0]) for codes, _, _ in group.weights]
        merged = self._builder.variable(
            f"{group.path}/output_0", dtype, (*x.shape[:-1], sum(sizes))
        )
        self._plugin(group, x, merged)
        split = self._builder.inline(f"merged.{'+'.join(map(str, sizes))}", sizes)
        self._builder.node("Split", f"{group.path}/Split", [merged, split], outputs, {"axis": -1})

    def _plugin(self, group: LinearGroup, x: gs.Variable, output: gs.Variable) -> None:
        gate_up = group.silu is not None
        weight = kernel_weight(group.module, group.weights, group.bits, gate_up=gate_up)
        tensors = [weight.qweight, weight.scales, weight.zeros, group.bias]
        given: dict[str, Number] = {
            "bits": weight.bits,
            "group_size": weight.group_size,
            "in_features": weight.in_features,
            "out_features": weight.out_features,
            "layout_version": LAYOUT_VERSION,
            "has_zeros": int(weight.zeros is not None),
            "has_bias": int(group.bias is not None),
            "epilogue": int(Epilogue.SILU_MUL if gate_up else Epilogue.NONE),
        }
        inputs = [x, *(self._builder.weight(w) for w in tensors if w is not None)]
        name = f"{group.path}/W4A16Linear"
        _plugin_node(self._builder, W4A16_LINEAR, name, inputs, [output], given)


@dataclass(frozen=True)
class _HeadNorm:
    """RMSNormalization of each head: input, weight, epsilon."""

    x: gs.Variable
    weight: gs.Constant
    epsilon: float


class _Attention:
    def __init__(self, work: DecoderGraph, builder: GraphBuilder) -> None:
        self._work = work
        self._builder = builder

    def run(self) -> None:
        rewrite(self._work, {"CachedAttention": self._attention})
        self._work.graph.cleanup()  # head norms and Splits that nothing reads any more

    def _attention(self, node: gs.Node) -> None:
        q, k, v, past_length, cosine, sine, past_key, past_value = list(node.inputs)
        outputs = list(node.outputs)
        given: dict[str, Number] = dict(node.attrs)  # under the contract's names
        norms = [_head_norm(tensor) for tensor in (q, k)]
        weights: list[gs.Constant] = []
        if norms[0] is not None and norms[1] is not None:
            assert norms[0].epsilon == norms[1].epsilon, node.name
            q, k = norms[0].x, norms[1].x
            weights = [norms[0].weight, norms[1].weight]
            given |= {"qk_norm": 1, "norm_eps": norms[0].epsilon}
        merged = _merged(q, k, v)
        if merged is not None:
            given["merged_qkv"] = 1
        tables = [cosine, sine] if given["rotary_size"] else []
        detach(node)
        inputs = [*((q, k, v) if merged is None else (merged,)), past_length, *tables]
        inputs += [past_key, past_value, *weights]
        _plugin_node(self._builder, CACHED_ATTENTION, node.name, inputs, outputs, given)


def _head_norm(tensor: gs.Variable) -> _HeadNorm | None:
    """The norm of heads that ends in a tensor: Reshape ─ RMSNormalization ─ Reshape."""
    join = producer(tensor)
    norm = producer(join.inputs[0]) if join is not None and join.op == "Reshape" else None
    split = producer(norm.inputs[0]) if norm is not None and norm.op == "RMSNormalization" else None
    if norm is None or split is None or split.op != "Reshape":
        return None
    return _HeadNorm(split.inputs[0], norm.inputs[1], float(norm.attrs["epsilon"]))


def _merged(q: gs.Variable, k: gs.Variable, v: gs.Variable) -> gs.Variable | None:
    """The tensor that a Split takes q, k and v from; None where they are apart."""
    split = producer(q)
    if split is None or split.op != "Split" or split.attrs.get("axis") != -1:
        return None
    parts = list(split.outputs)
    same = len(parts) == 3 and all(a is b for a, b in zip(parts, (q, k, v), strict=True))
    return split.inputs[0] if same else None
