"""The lowering for TensorRT: opset 24 from 10.15 on, see tensorrt_lowering.py."""

from __future__ import annotations

from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ConfigError
from awq_edge.exporter import tensorrt_lowering
from awq_edge.exporter.canonical import GraphSpec
from awq_edge.exporter.graph import CANONICAL_OPSET, DecoderGraph
from awq_edge.exporter.lowered import Lowered
from awq_edge.exporter.tensorrt_lowering import Target
from awq_edge.recipe import Recipe

IR_VERSION = 11
# The first with RMSNormalization, RotaryEmbedding and TensorScatter.
TARGET = Target(CANONICAL_OPSET, IR_VERSION, "10.15")


def check_recipe(recipe: Recipe) -> None:
    """Raise ConfigError for what this version of TensorRT cannot execute."""
    _target(recipe)
    tensorrt_lowering.check_recipe(recipe)


def check_model(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise ModelError for what the chosen nodes cannot hold."""
    tensorrt_lowering.check_model(checkpoint, recipe)


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> Lowered:
    """The graph of a checkpoint for TensorRT."""
    return tensorrt_lowering.build(checkpoint, spec, recipe, _target(recipe))


def lower(canonical: DecoderGraph, recipe: Recipe) -> DecoderGraph:
    """The graph for TensorRT. `canonical` is left as it was."""
    return tensorrt_lowering.lower(canonical, recipe, _target(recipe))


def _target(recipe: Recipe) -> Target:
    version = tuple(int(part) for part in recipe.runtime.version.split("."))
    if version < (10, 15):
        raise ConfigError(
            f"recipe {recipe.name} has version {recipe.runtime.version} of runtime tensorrt; graphs "
            f"are made for {TARGET.minimum_version} and newer"
        )
    return TARGET
