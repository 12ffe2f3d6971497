"""Runtimes, one file each, which holds the runtime's record.

To add one: write `runtimes/<name>.py` with a module constant RUNTIME. docs/add-a-backend.md.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from awq_edge.errors import ConfigError
from awq_edge.recipe.runtimes.base import EngineKind, Memory, NativeLayers, Runtime, load

__all__ = [
    "EngineKind",
    "Memory",
    "NativeLayers",
    "Runtime",
    "load",
    "register",
    "require_runtime",
    "runtime_names",
    "runtimes",
]


@functools.cache
def runtimes() -> dict[str, Runtime]:
    """Every runtime by its name: of this folder, or registered."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]
    records = [importlib.import_module(f"{__name__}.{name}").RUNTIME for name in sorted(names)]
    return {record.name: record for record in records}


def runtime_names() -> tuple[str, ...]:
    """The names that a recipe's runtime.backend may have, sorted."""
    return tuple(sorted(runtimes()))


def require_runtime(name: str) -> Runtime:
    """The record of a runtime. Raises ConfigError naming the runtimes that there are."""
    record = runtimes().get(name)
    if record is None:
        raise ConfigError(
            f"this version has no runtime '{name}' yet; take one that it has (--runtime "
            f"{' or --runtime '.join(runtime_names())}; onnxruntime runs on any CPU), or update "
            "awq-edge to a version that has it"
        )
    return record


def register(record: Runtime) -> None:
    """Add a runtime from outside this package, for this process. Raises ConfigError for a name that
    is taken."""
    if runtimes().setdefault(record.name, record) != record:
        raise ConfigError(
            f"runtime '{record.name}' is there already; give the new one another name"
        )
