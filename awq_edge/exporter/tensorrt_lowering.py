"""The common part of the lowerings for TensorRT and TensorRT for RTX.

    canonical ─ linears ─ attention ─ (RMSNormalization in primitives, opset 17) ─ lowered

`--linear` and `--attention` choose what the two operators of the canonical graph become: nodes of
our plugin, or TensorRT's own layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from awq_edge.artifacts.directories import PluginUse
from awq_edge.exporter.canonical import build_canonical_graph
from awq_edge.exporter.graph import DecoderGraph, GraphBuilder
from awq_edge.exporter.lowered import Lowered, lowered_graph
from awq_edge.exporter.masked_experts import masked_experts
from awq_edge.exporter.native_nodes import NativeAttention, native_linears
from awq_edge.exporter.passes import rewrite
from awq_edge.exporter.plugin_nodes import plugin_attention, plugin_linears
from awq_edge.exporter.positions import Positions
from awq_edge.exporter.primitive_nodes import PrimitiveAttention, primitive_functions
from awq_edge.exporter.spec import GraphSpec
from awq_edge.kernels.interface import LAYOUT_VERSION
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import Recipe
from awq_edge.tensorrt.contract import DOMAIN, PLUGIN_VERSION

# The opset of RMSNormalization, RotaryEmbedding and Attention.
FIRST_WITH_ATTENTION = 23


@dataclass(frozen=True)
class Target:
    """One range of versions of one runtime. ir_version: of the ONNX file; the one that belongs to
    the opset, or an older one that has all its types. minimum_version: of the runtime."""

    opset: int
    ir_version: int
    minimum_version: str


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
