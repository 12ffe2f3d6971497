"""Lowerings, one file each, found by import.

To add one: write `exporter/lower_<name>.py` with what `Lowering` lists, where <name> is the
recipe's `runtime.backend` with `-` as `_`. Nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

from awq_edge.errors import ConfigError
from awq_edge.exporter.canonical import GraphSpec
from awq_edge.exporter.lowered import Lowered
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import Recipe

_PREFIX = "lower_"
_PACKAGE = __name__.rpartition(".")[0]


class Lowering(Protocol):
    """A module `lower_<name>`."""

    def build(self, checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> Lowered:
        """The model for the runtime. Evaluates no weight but, where its type depends on it, the
        embedding."""


def lowering_names() -> tuple[str, ...]:
    """The runtimes that a bundle can be exported for."""
    path = importlib.import_module(_PACKAGE).__path__
    names = (module.name for module in pkgutil.iter_modules(path))
    found = (name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))
    return tuple(sorted(name.replace("_", "-") for name in found))


def require_lowering(runtime: str) -> Lowering:
    """The lowering for a runtime. Raises ConfigError, naming the way out, when there is none."""
    if runtime not in lowering_names():
        raise ConfigError(
            f"this version cannot export for runtime '{runtime}' yet; export for one it can "
            f"(--runtime {' or --runtime '.join(lowering_names())}, which runs on any CPU), or "
            "update awq-edge to a version that has it"
        )
    module = importlib.import_module(f"{_PACKAGE}.{_PREFIX}{runtime.replace('-', '_')}")
    return cast(Lowering, module)
