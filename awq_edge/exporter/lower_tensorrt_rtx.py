"""The lowering for TensorRT for RTX: opset 24, see tensorrt_lowering.py."""

from __future__ import annotations

from awq_edge.exporter import tensorrt_lowering
from awq_edge.exporter.emit_tensorrt import TensorRtEmitter
from awq_edge.exporter.lowered import Lowered
from awq_edge.exporter.spec import GraphSpec
from awq_edge.exporter.tensorrt_lowering import Target
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import Recipe

OPSET, IR_VERSION = 24, 11
# The one that these graphs are built with here; older ones have not been tried.
TARGET = Target(OPSET, IR_VERSION, "1.7")


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> Lowered:
    """The graph of a checkpoint for TensorRT for RTX."""
    return tensorrt_lowering.build(checkpoint, spec, recipe, TARGET)


def emitter_of(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> TensorRtEmitter:
    """What emits the graph of a checkpoint."""
    return tensorrt_lowering.emitter_of(checkpoint, spec, recipe, TARGET)
