"""Keyword arguments that `awq_edge.quantize` and `awq_edge.export` had before recipes took them.

They work until version 0.2, with a DeprecationWarning that shows the new call.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from awq_edge.quantizer.run_options import RunOptions
from awq_edge.recipe.recipes import Recipe, load_recipe

# Options of recipes that were keyword arguments; what came later never was one.
_BOTH = frozenset(
    "method bits group_size scheme propagate_error lm_head_bits samples length seed".split()
)
FORMER_OPTIONS = {
    "quantize": _BOTH | {"format"},
    "export": _BOTH
    | frozenset("runtime context accuracy_level activation_dtype linear attention".split()),
}
_USER = 4  # frames: this module, the call, its decorator, the user's line


def with_former(
    call: str, recipe: str | Path | Recipe | None, run: RunOptions, former: Mapping[str, Any]
) -> tuple[Recipe, RunOptions]:
    """The recipe and the options of a run, with the former keyword arguments of a call in them.

    call: quantize or export. Raises TypeError for an argument that the call never had, ConfigError
    for a value that it cannot have.
    """
    options = {name: value for name, value in former.items() if name in FORMER_OPTIONS[call]}
    running = {f.name: former[f.name] for f in fields(run) if f.name in former}
    for name in former:
        if name not in options and name not in running:
            raise TypeError(f"{call}() got an unexpected keyword argument '{name}'")
    if former:
        new = [_shown("awq_edge.load_recipe", options, recipe)] if options else []
        new += ["run=" + _shown("awq_edge.RunOptions", running)] if running else []
        warnings.warn(
            f"{', '.join(former)}: deprecated keyword arguments of awq_edge.{call}, which go with "
            f"version 0.2; write awq_edge.{call}(MODEL, OUT, {', '.join(new)})",
            DeprecationWarning,
            stacklevel=_USER,
        )
    if isinstance(recipe, Recipe):
        resolved = recipe.asking(**options) if options else recipe
    else:
        resolved = load_recipe(recipe, **options)
    return resolved, replace(run, **{n: v for n, v in running.items() if v is not None})


def _shown(call: str, arguments: Mapping[str, Any], recipe: object = None) -> str:
    first = [] if recipe is None else ["RECIPE" if isinstance(recipe, Recipe) else repr(recipe)]
    return f"{call}({', '.join([*first, *(f'{n}={v!r}' for n, v in arguments.items())])})"
