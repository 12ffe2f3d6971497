"""The common part of the lowerings for TensorRT and TensorRT for RTX; `emit_tensorrt.py` has the
nodes."""

from __future__ import annotations

from dataclasses import dataclass

from awq_edge.artifacts.directories import PluginUse
from awq_edge.exporter.checkpoint_sources import CheckpointSources
from awq_edge.exporter.emit_tensorrt import TensorRtEmitter
from awq_edge.exporter.graph import DecoderGraph
from awq_edge.exporter.lowered import Lowered, lowered_graph
from awq_edge.exporter.spec import GraphSpec
from awq_edge.kernels.interface import LAYOUT_VERSION
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.program.build import checkpoint_program
from awq_edge.program.storage import Storage, tensorrt_form
from awq_edge.recipe.recipes import Recipe
from awq_edge.tensorrt.contract import DOMAIN, PLUGIN_VERSION


@dataclass(frozen=True)
class Target:
    """One range of versions of one runtime. ir_version: of the ONNX file; the one that belongs to
    the opset, or an older one that has all its types. minimum_version: of the runtime."""

    opset: int
    ir_version: int
    minimum_version: str


def emitter_of(
    checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe, target: Target
) -> TensorRtEmitter:
    """What emits the graph of a checkpoint."""
    program = checkpoint_program(checkpoint, spec.lm_head_bits)
    storage = Storage(tensorrt_form(recipe, program), CheckpointSources(checkpoint))
    return TensorRtEmitter(program, storage, spec, target.opset, recipe.export)


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe, target: Target) -> Lowered:
    """The graph of a checkpoint for TensorRT."""
    graph = emitter_of(checkpoint, spec, recipe, target).emit()
    return lowered_graph(
        graph,
        target.ir_version,
        minimum_version=target.minimum_version,
        linear=recipe.export.linear,
        attention=recipe.export.attention,
        plugin=_plugin_use(graph),
    )


def _plugin_use(graph: DecoderGraph) -> PluginUse | None:
    ops = sorted({node.op for node in graph.graph.nodes if node.domain == DOMAIN})
    if not ops:
        return None
    return PluginUse(ops=tuple(ops), version=PLUGIN_VERSION, layout_version=LAYOUT_VERSION)
