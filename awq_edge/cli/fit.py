"""`awq-edge fit MODEL`: whether it fits a device, before a weight is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.generated import Given, recipe_options
from awq_edge.cli.options import (
    MODEL,
    WHERE,
    AllowUnknownKeysOption,
    JsonOption,
    RecipeOption,
)

if TYPE_CHECKING:
    from awq_edge.fit.fit import Asked
    from awq_edge.recipe.recipes import Recipe


def fit(
    given: Annotated[Given, recipe_options("fit")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="Directory, hub id (config.json alone is downloaded), 'demo', or a name of the "
            "shipped table, such as Llama-3.2-1B.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    all_devices: Annotated[
        bool,
        typer.Option(
            "--all",
            help="A table of all devices; without MODEL also of all models.",
            rich_help_panel=WHERE,
        ),
    ] = False,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of a weight: 2, 3, 4, 8; 16: unquantized.  [default: the recipe's]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    kv_dtype: Annotated[
        str,
        typer.Option(
            help="float16: unquantized, in the activations' type; int8: what the kernels could do, "
            "no runtime does it yet.",
            rich_help_panel=MODEL,
        ),
    ] = "float16",
    allow_unknown_keys: AllowUnknownKeysOption = False,
    json_to: JsonOption = None,
) -> None:
    """Predict memory and speed from config.json alone, and say whether the model fits."""
    from awq_edge.cli.fit_table import print_fit, print_table
    from awq_edge.cli.output import JsonTarget
    from awq_edge.errors import ConfigError
    from awq_edge.fit import fit as stage
    from awq_edge.fit.models import all_known, find_model
    from awq_edge.recipe.recipes import list_recipes, load_recipe

    target = JsonTarget(json_to, [model, recipe])
    asked = _asked(bits, kv_dtype, given)

    def changed(recipe: Recipe) -> Recipe:
        return recipe.asking(**given)

    if all_devices:
        if recipe is not None:
            raise ConfigError("--all is for every device; leave out --recipe, or --all")
        models = all_known() if model is None else [find_model(model, allow_unknown_keys)]
        table = stage.fit_all(models, list_recipes(), asked, changed)
        print_table(table, target.console())
        target.write(table.model_dump_json(indent=2))
        return
    if model is None:
        raise ConfigError(
            "MODEL is missing: give a directory, a hub id or a name of the shipped table; "
            "`awq-edge fit --all` shows all of them on all devices"
        )
    named = find_model(model, allow_unknown_keys)
    report = stage.fit(named, load_recipe(recipe, **given), asked)
    print_fit(report, target.console())
    target.write(report.model_dump_json(indent=2))


def _asked(bits: int | None, kv_dtype: str, given: Given) -> Asked:
    """The settings that were given; the recipe has the rest of `given`."""
    from awq_edge.errors import ConfigError
    from awq_edge.fit.fit import Asked

    if kv_dtype not in ("float16", "int8"):
        raise ConfigError(f"--kv-dtype {kv_dtype}: allowed values: float16, int8")
    settings = {name: given.pop(name, None) for name in ("group_size", "lm_head_bits", "context")}
    return Asked(bits, kv_dtype="int8" if kv_dtype == "int8" else "float16", **settings)
