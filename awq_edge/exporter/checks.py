"""Limits of each runtime: asked before an export, and by `fit` before a model is there.

    recipe    types of activations, versions
    model     what its blocks have beyond Llama's, sizes of heads, groups and zero points of weights

One list of checks for both, which needs no package of the exporter's. `checks_<runtime>.py` have
the checks of one runtime, named by its record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from awq_edge.errors import ConfigError
from awq_edge.kernels.interface import GROUP_SIZES
from awq_edge.model.archs import Decoder
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.recipe.recipes import Recipe
from awq_edge.recipe.runtimes import load


class ExportedModel(Protocol):
    """A checkpoint, or a planned one. has_quantized: some of its linears are quantized."""

    @property
    def path(self) -> Path: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def has_quantized(self) -> bool: ...

    def linear_names(self) -> Iterable[str]:
        """Full names of the linears of blocks; one layer of each kind is enough."""

    def is_quantized(self, name: str) -> bool: ...
    def linear_format(self, name: str) -> NumberFormat: ...


# Raises for what a runtime cannot execute: of a recipe, and of a model where there is one.
Check = Callable[[Recipe, "ExportedModel | None"], None]


def check_recipe(recipe: Recipe) -> None:
    """Raise ConfigError for what the recipe's runtime cannot execute of any model."""
    _check(recipe, None)


def check_model(model: ExportedModel, recipe: Recipe) -> None:
    """Raise for a model that the recipe's runtime cannot execute: ModelError, naming sizes, formats
    or what the blocks have; ConfigError for activations that overflow. An unquantized checkpoint is
    what the recipe will make of it."""
    _check(recipe, model)
    _check_activations(model, recipe)  # last: another type helps none that fails before


def _check(recipe: Recipe, model: ExportedModel | None) -> None:
    function = recipe.runtime.record.checks
    if function is not None:
        check: Check = load(function)
        check(recipe, model)


def activation_dtypes(recipe: Recipe) -> tuple[str, ...]:
    """The types of activations that the recipe's runtime has kernels or layers for."""
    runtime, export = recipe.runtime.record, recipe.export
    if runtime.native is not None and (export.linear, export.attention) == ("native", "native"):
        return runtime.native.activation_dtypes
    return runtime.activation_dtypes


def _check_activations(model: ExportedModel, recipe: Recipe) -> None:
    """Raise ConfigError for activations that the runtime does not execute, or that do not hold what
    the model computes; the advice is one that both take."""
    executed, dtype = activation_dtypes(recipe), recipe.runtime.activation_dtype
    runtime, overflows = recipe.runtime.record, model.decoder.architecture.overflows_float16
    usable = [each for each in executed if not (overflows and each == "float16")]
    if dtype in usable:
        return
    forms = ""
    if runtime.native is not None:
        forms = f" with --linear {recipe.export.linear} --attention {recipe.export.attention}"
    kind = f"activations of model_type '{model.decoder.model_type}'"
    if dtype in executed:
        problem = f"{model.path}: {kind} exceed what float16 can hold"
    else:
        problem = (
            f"runtime {runtime.name}{forms} executes {' or '.join(executed)} activations, recipe "
            f"{recipe.name} has {dtype}"
        )
        if overflows and "float16" in executed:
            problem += f", and {kind} exceed what float16 can hold"
    raise ConfigError(f"{problem}; give --activation-dtype {' or '.join(usable)}")


def check_context(decoder: Decoder, context: int, source: str) -> None:
    """Raise ConfigError for more tokens than a model has positions. source: what says how many."""
    longest = decoder.max_positions
    if context is not None and context > longest:
        raise ConfigError(
            f"--context {context} is beyond the {longest} positions of {source}; give {longest} or "
            "less"
        )


def quantizable(model: ExportedModel) -> list[str]:
    """Full names of the linears of blocks, and of the output layer."""
    return [*model.linear_names(), model.decoder.architecture.lm_head]


def packing_problems(model: ExportedModel) -> list[str]:
    """The first linear whose groups the layout of the kernels does not have."""
    for name in quantizable(model):
        if model.is_quantized(name):
            group_size = model.linear_format(name).group_size
            if group_size not in GROUP_SIZES:
                groups = ", ".join(map(str, GROUP_SIZES))
                return [f"group_size {group_size} of {name} is not one of {groups}"]
    return []
