"""The lowering for TensorRT, see tensorrt_lowering.py: opset 24 from 10.15 on, before that 17."""

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
# JetPack 6.2's. Decomposed: what came after opset 17 is in its primitives.
DECOMPOSED = Target(17, 8, "10.3")


def check_recipe(recipe: Recipe) -> None:
    """Raise ConfigError for what this version of TensorRT cannot execute."""
    target = _target(recipe)
    if target is DECOMPOSED and recipe.export.linear == "native":
        raise ConfigError(
            f"--linear native needs TensorRT {TARGET.minimum_version}, recipe {recipe.name} has "
            f"{recipe.runtime.version}: the graph for it is opset {DECOMPOSED.opset}, whose "
            "DequantizeLinear has no groups; give --linear plugin"
        )
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
    version = recipe.runtime.version
    if _release(version) < _release(DECOMPOSED.minimum_version):
        raise ConfigError(
            f"recipe {recipe.name} has version {version} of runtime tensorrt; graphs are made for "
            f"{DECOMPOSED.minimum_version} and newer: take a recipe of a Jetson, or write one with "
            "the TensorRT that the target has"
        )
    return DECOMPOSED if _release(version) < _release(TARGET.minimum_version) else TARGET


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
