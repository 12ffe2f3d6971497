"""The lowering for onnxruntime; `emit_onnxruntime.py` has its nodes."""

from __future__ import annotations

from awq_edge.exporter.checkpoint_sources import CheckpointSources
from awq_edge.exporter.emit_onnxruntime import IR_VERSION, OnnxRuntimeEmitter
from awq_edge.exporter.lowered import Lowered, lowered_graph
from awq_edge.exporter.spec import GraphSpec
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.program.build import checkpoint_program
from awq_edge.program.storage import Storage, onnxruntime_form
from awq_edge.recipe.recipes import Recipe


def emitter_of(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> OnnxRuntimeEmitter:
    """What emits the graph of a checkpoint."""
    program = checkpoint_program(checkpoint, spec.lm_head_bits)
    storage = Storage(onnxruntime_form(recipe, program), CheckpointSources(checkpoint))
    return OnnxRuntimeEmitter(program, storage, spec, recipe.runtime.accuracy_level)


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> Lowered:
    """The graph of a checkpoint for onnxruntime."""
    emitter = emitter_of(checkpoint, spec, recipe)
    return lowered_graph(
        emitter.emit(),
        IR_VERSION,
        minimum_version=emitter.minimum_version,
        accuracy_level=recipe.runtime.accuracy_level,
        scale_groups=emitter.scale_groups,
    )
