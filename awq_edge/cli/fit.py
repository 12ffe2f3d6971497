"""`awq-edge fit MODEL`: whether it fits a device, before a weight is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.options import (
    AllowUnknownKeysOption,
    GroupSizeOption,
    LmHeadBitsOption,
    SchemeOption,
)
from awq_edge.recipe.runtimes import runtime_names

if TYPE_CHECKING:
    from awq_edge.fit.fit import Asked
    from awq_edge.recipe.recipes import Recipe


def fit(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Directory, hub id (config.json alone is downloaded), 'demo', or a name of the "
            "shipped table, such as Llama-3.2-1B.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Target device; see `awq-edge recipes`.  [default: cpu]"),
    ] = None,
    all_devices: Annotated[
        bool,
        typer.Option("--all", help="A table of all devices; without MODEL also of all models."),
    ] = False,
    context: Annotated[
        int | None, typer.Option(help="Tokens of the KV cache.  [default: the recipe's]")
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of a weight: 2, 3, 4, 8; 16: unquantized.  [default: the recipe's]"
        ),
    ] = None,
    group_size: GroupSizeOption = None,
    scheme: SchemeOption = None,
    lm_head_bits: LmHeadBitsOption = None,
    kv_dtype: Annotated[
        str,
        typer.Option(
            help="float16: unquantized, in the activations' type; int8: what the kernels could do, "
            "no runtime does it yet."
        ),
    ] = "float16",
    runtime: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(runtime_names())}.  [default: the recipe's]"),
    ] = None,
    activation_dtype: Annotated[
        str | None,
        typer.Option(help="float16, bfloat16 or float32.  [default: the recipe's]"),
    ] = None,
    allow_unknown_keys: AllowUnknownKeysOption = False,
    json_to: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write it as JSON; - : alone, out."),
    ] = None,
) -> None:
    """Predict memory and speed from config.json alone, and say whether the model fits."""
    from awq_edge.cli.fit_table import print_fit, print_table
    from awq_edge.cli.output import JsonTarget
    from awq_edge.errors import ConfigError
    from awq_edge.fit import fit as stage
    from awq_edge.fit.models import all_known, find_model
    from awq_edge.recipe.recipes import default_recipe, list_recipes, load_recipe

    target = JsonTarget(json_to, [model, recipe])
    asked = _asked(bits, group_size, lm_head_bits, kv_dtype, context)
    overrides: dict[str, object] = {
        "runtime.backend": runtime,
        "runtime.activation_dtype": activation_dtype,
        "quantization.scheme": scheme,
    }

    def changed(recipe: Recipe) -> Recipe:
        return recipe.overridden(overrides)

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
    loaded = default_recipe(runtime) if recipe is None else load_recipe(recipe)
    report = stage.fit(find_model(model, allow_unknown_keys), changed(loaded), asked)
    print_fit(report, target.console())
    target.write(report.model_dump_json(indent=2))


def _asked(
    bits: int | None,
    group_size: int | None,
    lm_head_bits: int | None,
    kv_dtype: str,
    context: int | None,
) -> Asked:
    from awq_edge.errors import ConfigError
    from awq_edge.fit.fit import Asked

    if kv_dtype not in ("float16", "int8"):
        raise ConfigError(f"--kv-dtype {kv_dtype}: allowed values: float16, int8")
    return Asked(
        bits, group_size, lm_head_bits, "int8" if kv_dtype == "int8" else "float16", context
    )
