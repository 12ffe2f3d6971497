"""Fields that a person may give by themselves: what a command's options are made of.

A field of a pydantic model carries a `Flag`, and with it the name and the help of its option; type
and allowed values are the field's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel


@dataclass(frozen=True)
class Flag:
    """Metadata of a field. help: a sentence without its full stop; the values of a Literal stand
    in the place of {}, or at the end. name: of option and argument, None for the field's own."""

    help: str
    name: str | None = None


@dataclass(frozen=True)
class FlagField:
    """A field with a flag.

    key: where it stands, dotted ("quantization.group_size"). name: as an argument ("group_size").
    type: bool, int, float or str. help: with the allowed values, and a full stop.
    """

    key: str
    name: str
    type: type[bool | int | float | str]
    help: str

    def typed(self, value: object) -> str:
        """The option as it is typed: --group-size 64, --no-propagate-error."""
        name = self.name.replace("_", "-")
        if isinstance(value, bool):
            return f"--{name}" if value else f"--no-{name}"
        return f"--{name} {value}"


def flag_fields(model: type[BaseModel], prefix: str = "") -> Iterator[FlagField]:
    """Every field of a model, and of the models in it, that carries a flag."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from flag_fields(field.annotation, f"{prefix}{name}.")
            continue
        for flag in field.metadata:
            if isinstance(flag, Flag):
                values = _values(field.annotation)
                text = flag.help if not values or "{}" in flag.help else f"{flag.help}: {{}}"
                text = f"{text.format(', '.join(map(str, values)))}."
                kind = type(values[0]) if values else _scalar(field.annotation)
                yield FlagField(prefix + name, flag.name or name, kind, text)


def _values(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _scalar(annotation: Any) -> Any:
    """The type under Annotated and `| None`."""
    while get_args(annotation):
        annotation = get_args(annotation)[0]
    return annotation
