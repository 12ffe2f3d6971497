"""What the lowerings for TensorRT and TensorRT for RTX share.

    canonical ─ linears ─ attention ─ (RMSNormalization in primitives, opset 17) ─ lowered

`--linear` and `--attention` choose what the two operators of the canonical graph become: nodes of
our plugin, or TensorRT's own layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from awq_edge.artifacts import PluginUse
from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ConfigError, ModelError
from awq_edge.exporter.canonical import GraphSpec, build_canonical_graph, lm_head_bits
from awq_edge.exporter.graph import DOMAIN, DecoderGraph, GraphBuilder
from awq_edge.exporter.lowered import Lowered, lowered_graph
from awq_edge.exporter.masked_experts import masked_experts
from awq_edge.exporter.native_nodes import NativeAttention, native_linears
from awq_edge.exporter.passes import rewrite
from awq_edge.exporter.plugin_nodes import plugin_attention, plugin_linears
from awq_edge.exporter.positions import Positions
from awq_edge.exporter.primitive_nodes import PrimitiveAttention, primitive_functions
from awq_edge.lm_head import LM_HEAD_SCHEMES
from awq_edge.plugin.contract import CACHED_ATTENTION, PLUGIN_VERSION
from awq_edge.plugin.interface import LAYOUT_VERSION
from awq_edge.plugin.packing import PACKED_GROUP_SIZES
from awq_edge.recipe import Recipe

# The opset of RMSNormalization, RotaryEmbedding and Attention.
FIRST_WITH_ATTENTION = 23
PLUGIN_DTYPES = ("float16", "bfloat16")
NATIVE_DTYPES = (*PLUGIN_DTYPES, "float32")


@dataclass(frozen=True)
class Target:
    """One range of versions of one runtime. ir_version: of the ONNX file; the one that belongs to
    the opset, or an older one that has all its types. minimum_version: of the runtime."""

    opset: int
    ir_version: int
    minimum_version: str


def check_recipe(recipe: Recipe) -> None:
    """Raise ConfigError for activations that the chosen nodes do not take."""
    forms = (recipe.export.linear, recipe.export.attention)
    native = forms == ("native", "native")
    allowed = NATIVE_DTYPES if native else PLUGIN_DTYPES
    dtype = recipe.runtime.activation_dtype
    if dtype not in allowed:
        raise ConfigError(
            f"runtime {recipe.runtime.backend} with --linear {forms[0]} --attention {forms[1]} "
            f"executes {' or '.join(allowed)} activations, recipe {recipe.name} has {dtype}; give "
            "--activation-dtype float16"
        )


def check_model(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise ModelError for sizes and number formats that no node exists for."""
    problems = []
    if recipe.export.linear == "plugin":
        problems += _plugin_linear_problems(checkpoint)
    else:
        problems += _native_linear_problems(checkpoint, recipe)
    if recipe.export.attention == "plugin":
        problems += _plugin_attention_problems(checkpoint)
    if problems:
        raise ModelError(
            f"{checkpoint.path}: runtime {recipe.runtime.backend} cannot execute it: "
            f"{'; '.join(problems)}"
        )


def lower(canonical: DecoderGraph, recipe: Recipe, target: Target) -> DecoderGraph:
    """The graph for TensorRT. `canonical` is left as it was."""
    work = canonical.copy()
    builder = GraphBuilder(work)
    masked_experts(work, builder)
    primitive = target.opset < FIRST_WITH_ATTENTION
    linears = {"plugin": plugin_linears, "native": native_linears}[recipe.export.linear]
    linears(work, builder)
    if recipe.export.attention == "plugin":
        plugin_attention(work, builder)
    else:
        _attention_layers(work, builder, primitive)
    if primitive:
        primitive_functions(work, builder)
    work.graph.opset, work.graph.import_domains = target.opset, None
    return work


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe, target: Target) -> Lowered:
    """The graph of a checkpoint for TensorRT."""
    graph = lower(build_canonical_graph(checkpoint, spec), recipe, target)
    return lowered_graph(
        graph,
        target.ir_version,
        minimum_version=target.minimum_version,
        linear=recipe.export.linear,
        attention=recipe.export.attention,
        plugin=_plugin_use(graph),
    )


def _attention_layers(work: DecoderGraph, builder: GraphBuilder, primitive: bool) -> None:
    """Every CachedAttention becomes TensorRT's Attention, or primitives; so do soft caps."""
    positions = Positions(builder)
    whole = NativeAttention(work, builder, positions)
    parts = PrimitiveAttention(builder, positions)

    def lower(node: gs.Node) -> None:
        apart = primitive or "soft_cap" in node.attrs
        (parts if apart else whole).lower(node)

    rewrite(work, {"CachedAttention": lower})


def _plugin_use(graph: DecoderGraph) -> PluginUse | None:
    ops = sorted({node.op for node in graph.graph.nodes if node.domain == DOMAIN})
    if not ops:
        return None
    return PluginUse(ops=tuple(ops), version=PLUGIN_VERSION, layout_version=LAYOUT_VERSION)


def _plugin_linear_problems(checkpoint: Checkpoint) -> list[str]:
    for name in _linears(checkpoint):
        if checkpoint.is_quantized(name):
            group_size = checkpoint.linear_format(name).group_size
            if group_size not in PACKED_GROUP_SIZES:
                groups = ", ".join(map(str, PACKED_GROUP_SIZES))
                return [f"group_size {group_size} of {name} is not one of {groups}; give --linear "
                        "native, or quantize the original model again"]  # fmt: skip
    return []


def _native_linear_problems(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """TensorRT's DequantizeLinear has no zero points."""
    reason = "TensorRT's INT4 layers have no zero points"
    lm_head = checkpoint.decoder.architecture.lm_head
    is_rounded = not checkpoint.is_quantized(lm_head)
    if checkpoint.quantization is None:
        if recipe.quantization.method == "none":
            return []
        if recipe.quantization.scheme == "asymmetric":
            return [f"--linear native needs symmetric weights, {reason}; give --scheme symmetric"]
        return []  # lm_head is quantized with the blocks then
    for name in _linears(checkpoint):
        if checkpoint.is_quantized(name):
            if checkpoint.linear_format(name).scheme == "asymmetric":
                return [f"--linear native needs symmetric weights, {reason}, and {name} is "
                        "asymmetric; quantize the original model with --scheme symmetric, or give "
                        "--linear plugin"]  # fmt: skip
    bits = lm_head_bits(checkpoint, recipe.quantization.lm_head_bits)
    if is_rounded and bits != 16 and LM_HEAD_SCHEMES[bits] == "asymmetric":
        return [f"--linear native needs symmetric weights, {reason}, and an lm_head of {bits} bits "
                "is asymmetric; give --lm-head-bits 8"]  # fmt: skip
    return []


def _plugin_attention_problems(checkpoint: Checkpoint) -> list[str]:
    size = checkpoint.decoder.head_size
    sizes = next(a.choices for a in CACHED_ATTENTION.attributes if a.name == "head_size")
    if size in sizes:
        return []
    known = ", ".join(map(str, sizes))
    return [
        f"head size {size} is not one of {known}, which the plugin has; give --attention native"
    ]


def _linears(checkpoint: Checkpoint) -> list[str]:
    decoder = checkpoint.decoder
    names = [
        f"{decoder.layer_prefix(layer)}.{linear.name}"
        for layer in range(decoder.num_layers)
        for linear in decoder.linears(layer)
    ]
    return [*names, decoder.architecture.lm_head]
