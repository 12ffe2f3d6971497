"""`awq-edge recipes`: the target devices, in a table; `awq-edge recipes show NAME`: one of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.generated import GroupedCommand
from awq_edge.cli.options import JsonOption

if TYPE_CHECKING:
    from awq_edge.recipe.recipes import Device, Recipe

recipes_app = typer.Typer(
    name="recipes",
    help="The target devices and their defaults.",
    add_completion=False,
    rich_markup_mode=None,
)

_PIPE_WIDTH = 140  # columns where there is no terminal to ask: no row is broken


@recipes_app.callback(invoke_without_command=True)
def list_all(context: typer.Context) -> None:
    """The target devices and their defaults: a table of all of them."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from awq_edge.cli.output import open_console
    from awq_edge.recipe.recipes import list_recipes

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("runtime")
    for heading in ("CUDA arch", "SMs", "memory", "bandwidth", "weights", "lm_head", "context"):
        table.add_column(heading, justify="right")
    for recipe in list_recipes():
        device, quantization = recipe.device, recipe.quantization
        table.add_row(
            recipe.name,
            f"{recipe.runtime.backend} {recipe.runtime.version}",
            device.compute_capability or "-",
            str(device.sm_count or "-"),
            _memory(device),
            _bandwidth(device),
            f"{quantization.bits}-bit {quantization.method}",
            f"{quantization.lm_head_bits}-bit",
            str(recipe.export.context),
        )
    open_console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


@recipes_app.command(cls=GroupedCommand)
def show(
    name: Annotated[str, typer.Argument(help="Name of a recipe, or path of a .toml file.")],
    json_to: JsonOption = None,
) -> None:
    """Print one recipe with everything that it takes from others."""
    from awq_edge.cli.output import JsonTarget
    from awq_edge.recipe.recipes import load_recipe
    from awq_edge.terminal_text import printable

    target = JsonTarget(json_to, [name])
    recipe = load_recipe(name)
    if json_to is None:
        print(printable(_readable(recipe)))
        return
    target.write(recipe.model_dump_json(indent=2))


def _memory(device: Device) -> str:
    from awq_edge.units import format_size

    return "detected" if device.memory_bytes is None else format_size(device.memory_bytes)


def _bandwidth(device: Device) -> str:
    from awq_edge.units import format_bandwidth

    if device.memory_bandwidth is None:
        return "detected"
    return format_bandwidth(device.memory_bandwidth)


def _readable(recipe: Recipe) -> str:
    """The recipe as `key  value unit` lines under one heading per table."""
    from awq_edge.units import format_bandwidth

    units = {"context": "tokens", "prefill_chunk": "tokens", "length": "tokens"}
    lines = [f"{recipe.name}: {recipe.description}"]
    data = recipe.model_dump(mode="json", exclude={"name", "description"})
    for section, keys in data.items():
        lines += ["", section]
        for key, value in keys.items():
            if key == "power_modes" or value is None:
                continue
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            lines.append(f"  {key:<24}{text} {units.get(key, '')}".rstrip())
        if section == "device":
            for mode in recipe.device.power_modes:
                watts = f"{mode.watts} W" if mode.watts else "no limit"
                default = "  (default)" if mode.default else ""
                rate = format_bandwidth(mode.memory_bandwidth)
                lines.append(f"  power mode {mode.name:<13}{watts:<10}{rate}{default}")
    return "\n".join(lines)
