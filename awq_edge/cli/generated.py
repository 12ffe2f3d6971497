"""Options of commands that are made of fields with a `Flag` (`awq_edge.flags`).

    def quantize(model: ..., given: Annotated[Given, recipe_options("quantize")], ...) -> None:

`command(quantize)` is what typer sees: in the place of `given` an option for each field. Fields are
looked up when a command is used, because they are pydantic's, which `awq-edge --help` does without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from awq_edge.cli.options import CALIBRATION, MODEL, OUTPUT, SAMPLING, WHERE, run_options

if TYPE_CHECKING:
    from awq_edge.flags import FlagField

Given = dict[str, Any]  # options that were given, by name: {"bits": 3}

# Of a recipe's sections; runtime and export say where the bundle runs.
_PANELS = {"quantization": MODEL, "calibration": CALIBRATION, "runtime": WHERE, "export": WHERE}


@dataclass(frozen=True)
class Fields:
    """Marks a parameter of type `Given` as options. default: named behind each help."""

    lookup: Callable[[], Sequence[FlagField]]
    default: str


def recipe_options(name: str) -> Fields:
    """The fields of a recipe that a command takes: quantize, export or fit."""

    def lookup() -> Sequence[FlagField]:
        from awq_edge.recipe.recipes import command_fields

        return command_fields(name)

    return Fields(lookup, "the recipe's")


def _sampling_fields() -> Sequence[FlagField]:
    from awq_edge.artifacts.sampling_keys import SamplingKeys
    from awq_edge.flags import flag_fields

    return list(flag_fields(SamplingKeys))


@dataclass(frozen=True)
class Made:
    """Marks a parameter as options that are the parameters of a function, which makes its value."""

    function: Callable[..., object]


RunParameter = Annotated[Any, Made(run_options)]
SamplingOptions = Annotated[Given, Fields(_sampling_fields, "")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function with the options of each marked parameter in its place."""
    parameters: list[inspect.Parameter] = []
    made: dict[str, tuple[Callable[..., object], list[str]]] = {}
    for parameter in _keywords(function):
        marks = [m for m in get_args(parameter.annotation) if isinstance(m, (Fields, Made))]
        options = [parameter]
        for mark in marks:
            if isinstance(mark, Made):
                options, make = _keywords(mark.function), mark.function
            else:
                options, make = [_parameter(f, mark.default) for f in mark.lookup()], _given
            made[parameter.name] = make, [each.name for each in options]
        parameters += options

    def called(**values: Any) -> None:
        for name, (make, options) in made.items():
            values[name] = make(**{option: values.pop(option) for option in options})
        function(**values)

    called.__name__, called.__doc__ = function.__name__, function.__doc__
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


def _keywords(function: Callable[..., object]) -> list[inspect.Parameter]:
    """The parameters of a function, annotations resolved."""
    hints = get_type_hints(function, include_extras=True, localns={"RunOptions": object})
    return [
        each.replace(annotation=hints[each.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for each in inspect.signature(function).parameters.values()
    ]


def _given(**values: Any) -> Given:
    return {name: value for name, value in values.items() if value is not None}


def _parameter(field: FlagField, default: str) -> inspect.Parameter:
    flag = f"--{field.name.replace('_', '-')}"
    if field.type is bool:
        flag += f"/--no-{flag[2:]}"
    option = typer.Option(
        flag,
        help=f"{field.help}  [default: {default}]" if default else field.help,
        rich_help_panel=_PANELS.get(field.key.partition(".")[0], SAMPLING),
    )
    annotation = Annotated[field.type | None, option]  # type: ignore[name-defined]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


class GroupedCommand(typer.core.TyperCommand):
    """A command whose `--help` shows options in their groups, first those without one."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        groups |= {name: [] for name in (MODEL, WHERE, CALIBRATION, SAMPLING, OUTPUT, "Help")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name = getattr(parameter, "rich_help_panel", None) or "Options"
                if parameter.param_type_name == "argument":
                    name = "Arguments"
                groups["Help" if parameter.name == "help" else name].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)
