"""The lowering for TensorRT, see tensorrt_lowering.py: opset 24 from 10.15 on, before that 17."""

from __future__ import annotations

from awq_edge.exporter import tensorrt_lowering
from awq_edge.exporter.checks_tensorrt import DECOMPOSED_OPSET
from awq_edge.exporter.emit_tensorrt import TensorRtEmitter
from awq_edge.exporter.lowered import Lowered
from awq_edge.exporter.spec import GraphSpec
from awq_edge.exporter.tensorrt_lowering import Target
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import Recipe
from awq_edge.recipe.runtimes.tensorrt import FIRST_WITH_LAYERS, OLDEST_VERSION

OPSET, IR_VERSION = 24, 11
TARGET = Target(OPSET, IR_VERSION, FIRST_WITH_LAYERS)
# JetPack 6.2's. Decomposed: what came after opset 17 is in its primitives.
DECOMPOSED = Target(DECOMPOSED_OPSET, 8, OLDEST_VERSION)


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> Lowered:
    """The graph of a checkpoint for TensorRT."""
    return tensorrt_lowering.build(checkpoint, spec, recipe, _target(recipe))


def emitter_of(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> TensorRtEmitter:
    """What emits the graph of a checkpoint."""
    return tensorrt_lowering.emitter_of(checkpoint, spec, recipe, _target(recipe))


def _target(recipe: Recipe) -> Target:
    return DECOMPOSED if recipe.runtime.record.decomposes(recipe.runtime.version) else TARGET
