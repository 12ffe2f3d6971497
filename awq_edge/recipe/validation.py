"""Errors of pydantic models in the words of the file they came from: key, value, allowed values.

pydantic's own text is several lines, names Python types and does not say which keys exist.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from awq_edge.artifacts.input_files import show_text

_WORDS = {
    "string_type": "must be a text in quotes",
    "int_type": "must be an integer",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
}


def describe_errors(
    error: ValidationError,
    model: type[BaseModel],
    root_keys: Sequence[str],
    typed: Mapping[str, str] | None = None,
) -> str:
    """All errors in one line. model: the validated class; root_keys: its keys at the top level.
    typed: keys that options have set, with the options as they are typed; those are named then."""
    return "; ".join(
        _describe(dict(detail), model, root_keys, typed or {}) for detail in error.errors()
    )


def unknown_key(key: str, allowed: Sequence[str], noun: str = "key") -> str:
    """The text about a key that does not exist, with the nearest one that does."""
    last = key.rpartition(".")[2]
    close = [name for name in allowed if name.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(last, allowed, n=1)
    close = close or difflib.get_close_matches(key, allowed, n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f'unknown {noun} "{show_text(key)}"; {hint}allowed {noun}s: {", ".join(allowed)}'


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a model and of the tables in it: "a", "b.c", and "d", "d[].e" for a list."""
    for name, field in model.model_fields.items():
        nested = _nested(field.annotation)
        if nested is None or nested is not field.annotation:
            yield prefix + name
        if nested is not None:
            mark = "." if nested is field.annotation else "[]."
            yield from dotted_keys(nested, prefix + name + mark)


def show(value: object) -> str:
    """A value as it is written in a file: texts in quotes, true and false in lower case; on one
    line, shortened."""
    return show_text(json.dumps(value, ensure_ascii=False, default=str))


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that is a table or a list of tables."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _keys_at(
    loc: tuple[int | str, ...], model: type[BaseModel], root_keys: Sequence[str]
) -> Sequence[str]:
    """The keys that the table at `loc` may have."""
    if not loc:
        return root_keys
    for part in loc:
        if isinstance(part, str):
            model = _nested(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _describe(
    detail: dict[str, Any],
    model: type[BaseModel],
    root_keys: Sequence[str],
    typed: Mapping[str, str],
) -> str:
    loc, kind, value = detail["loc"], detail["type"], detail["input"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if kind == "extra_forbidden":
        return unknown_key(key, _keys_at(loc[:-1], model, root_keys))
    if kind == "missing":
        return f'missing key "{key}"'
    if kind == "literal_error":
        what = f"allowed values: {detail['ctx']['expected']}"
    elif kind == "value_error":
        what = str(detail["ctx"]["error"])
    elif kind == "model_type":
        what = f"must be a table with the keys {', '.join(_keys_at(loc, model, root_keys))}"
    else:
        what = _WORDS.get(kind, str(detail["msg"]).replace("Input should be", "must be"))
    if isinstance(value, dict):  # a rule between the keys of a table: the text names them
        options = [option for name, option in typed.items() if name.startswith(f"{key}.")]
        place = " ".join(options) or key
        return f"{place}: {what}" if place else what
    if key in typed:
        return f"{typed[key]}: {what}"
    return f'key "{key}" is {show(value)}; {what}'
