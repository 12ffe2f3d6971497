"""Lowerings: from a checkpoint to the model of one runtime, imported by the name in its record."""

from __future__ import annotations

from collections.abc import Callable

from awq_edge.exporter.lowered import Lowered
from awq_edge.exporter.spec import GraphSpec
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import Recipe
from awq_edge.recipe.runtimes import load, require_runtime

# The model for the runtime. Evaluates no weight but, where its type depends on it, the embedding.
Lowering = Callable[[Checkpoint, GraphSpec, Recipe], Lowered]


def require_lowering(runtime: str) -> Lowering:
    """The lowering for a runtime. Raises ConfigError, naming the way out, when there is none."""
    lowering: Lowering = load(require_runtime(runtime).lowering)
    return lowering
