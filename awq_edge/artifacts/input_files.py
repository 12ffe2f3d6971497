"""Files from outside: one reader for plain files, JSON and TOML, of bounded size and depth.

Whatever a model, a bundle, a recipe or a report holds is read through here. What is refused, each
in one line with the file's name:

* what is no plain file (a folder, a pipe, a device), without waiting for it
* more bytes than a file of its kind may have, before they are read
* what is not UTF-8, or holds half a surrogate pair, which no terminal and no file can take
* JSON or TOML deeper than `MAX_DEPTH`
* NaN and infinities, written or by overflow (1e999), which are no JSON
* one key twice with two values
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from awq_edge.errors import AwqEdgeError, ModelError
from awq_edge.terminal_text import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Bytes. The longest config.json in use has 200 kB, a tokenizer_config.json 2 MB.
MAX_JSON_BYTES = 32_000_000
MAX_TOML_BYTES = 1_000_000
# A config.json has 5 levels, a Jinja syntax tree is not among these files.
MAX_DEPTH = 64
_MAX_SHOWN = 80  # characters of a value in a message
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def open_plain(
    path: Path, error: type[AwqEdgeError] = ModelError, *, name: str | None = None
) -> FileIO:
    """A plain file opened for reading, unbuffered. Links are followed.

    name: of the file in messages, such as the flag and what was typed; None for the path. Raises
    `error` for what is missing, no plain file, or not to be read; never waits.
    """
    name = name or show_path(path)
    try:
        # A pipe without a writer would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise error(f"{name} does not exist") from None
    except OSError as problem:
        if problem.errno == errno.ENXIO:  # a socket, or a device without a driver
            raise error(f"{name} is not a plain file") from None
        raise error(f"{name} cannot be read: {problem.strerror}") from None
    except ValueError:
        raise error(f"{name} cannot be read: its name has a null byte") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise error(f"{name} is {_kind(mode)}, not a plain file")
    return open(descriptor, "rb", buffering=0)


def require_plain(path: Path, error: type[AwqEdgeError] = ModelError) -> None:
    """Raise `error` where another library would open what is no plain file, and might wait for it.

    A file that is missing passes: the library, or whoever looks for it, has the words.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise error(f"{show_path(path)} is {_kind(mode)}, not a plain file")


def read_bytes(
    path: Path,
    *,
    limit: int = MAX_JSON_BYTES,
    error: type[AwqEdgeError] = ModelError,
    name: str | None = None,
) -> bytes:
    """The bytes of a plain file. Raises `error` as `open_plain`, and for more than `limit` bytes,
    of which none is kept."""
    name = name or show_path(path)
    with open_plain(path, error, name=name) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise error(f"{name} has {size:,} bytes; a file of its kind has at most {limit:,}")
            data = _read_all(file, limit)
        except OSError as problem:
            raise error(f"{name} cannot be read: {problem.strerror}") from None
    if len(data) > limit:
        raise error(f"{name} has more than {limit:,} bytes")
    return data


def read_text(
    path: Path,
    *,
    limit: int = MAX_JSON_BYTES,
    error: type[AwqEdgeError] = ModelError,
    name: str | None = None,
) -> str:
    """The text of a plain UTF-8 file. Raises `error` as `read_bytes`."""
    name = name or show_path(path)
    return decode(read_bytes(path, limit=limit, error=error, name=name), name, error)


def decode(data: bytes, source: str, error: type[AwqEdgeError] = ModelError) -> str:
    """UTF-8 bytes as text. source: where they are from, for the message. Raises `error`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{source} is not UTF-8: byte {problem.start:,} begins no character") from None


def read_json(
    path: Path, *, limit: int = MAX_JSON_BYTES, error: type[AwqEdgeError] = ModelError
) -> dict[str, Any]:
    """A JSON object from a file. Raises `error` when it cannot be read or is not one."""
    data = read_bytes(path, limit=limit, error=error)
    return parse_json(data, show_path(path), error)


def parse_json(
    data: bytes | str, source: str, error: type[AwqEdgeError] = ModelError
) -> dict[str, Any]:
    """A JSON object. source: where it is from, for messages. Raises `error`."""
    value = parse_json_value(data, source, error)
    if not isinstance(value, dict):
        raise error(f"{source} holds {_type_name(value)}, not a JSON object")
    return value


def parse_json_value(
    data: bytes | str, source: str, error: type[AwqEdgeError] = ModelError, *, finite: bool = True
) -> Any:
    """Any JSON value. source: where it is from, for messages. finite: refuse NaN and infinities.
    Raises `error`."""
    text = data if isinstance(data, str) else decode(data, source, error)
    reader = _Json()
    try:
        value = reader.decode(text)
    except RecursionError:
        raise error(f"{source} is nested deeper than {MAX_DEPTH} levels") from None
    except _Refused as problem:
        raise error(f"{source}: {problem}") from None
    except ValueError as problem:  # JSONDecodeError, or an integer of thousands of digits
        raise error(f"{source} is not valid JSON: {_json_problem(problem)}") from None
    _check_depth(value, source, error)
    if finite and reader.has_non_finite:
        key = next(_non_finite(value), "a number")
        raise error(f"{source}: {key} is NaN or infinite, which is no JSON number")
    if _SURROGATE.search(text) and (half := _lone_surrogate(value)):
        raise error(
            f"{source} has {half!r}, half of a surrogate pair, which is no text; write the whole "
            "character"
        )
    return value


def read_toml(path: Path, *, error: type[AwqEdgeError]) -> dict[str, Any]:
    """A TOML table from a file. Raises `error` when it cannot be read or is not one."""
    source = show_path(path)
    text = read_text(path, limit=MAX_TOML_BYTES, error=error)
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise error(f"{source} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as problem:  # TOMLDecodeError among them
        raise error(f"{source}: not valid TOML: {problem}") from None
    _check_depth(value, source, error)
    key = next(_non_finite(value), None)
    if key is not None:
        raise error(f"{source}: {key} is NaN or infinite; give a finite number")
    return value


def show(value: object) -> str:
    """A value from outside for a message: 'a text' in single quotes, others as JSON has them; on
    one line, shortened."""
    if isinstance(value, str):
        return f"'{show_text(value)}'"
    text = repr(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        pass
    return show_text(text)


def show_text(text: str) -> str:
    """Text from outside for a message: shortened, on one line, safe on a terminal."""
    clean = one_line(text[:_MAX_SHOWN])
    return clean if len(text) <= _MAX_SHOWN else f"{clean}..."


def show_path(path: Path) -> str:
    """A path for a message, on one line, safe on a terminal."""
    return one_line(os.fspath(path))


class _Refused(ValueError):
    """JSON whose syntax is right and which is refused anyway."""


class _Json(json.JSONDecoder):
    """A JSON decoder that notes numbers that are not finite and refuses contradictory keys."""

    def __init__(self) -> None:
        self.has_non_finite = False
        super().__init__(
            parse_float=self._float,
            parse_constant=self._constant,
            object_pairs_hook=self._table,
        )

    def _float(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self.has_non_finite = True
        return value

    def _constant(self, text: str) -> float:
        self.has_non_finite = True
        return float(text.replace("Infinity", "inf"))

    def _table(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            for key, value in pairs:
                if table[key] != value and value == value:
                    raise _Refused(f"key {show(key)} is there twice, with two values")
        return table


def _read_all(file: BinaryIO, limit: int) -> bytes:
    pieces, size = [], 0
    while size <= limit and (piece := file.read(min(1 << 20, limit + 1 - size))):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _check_depth(value: Any, source: str, error: type[AwqEdgeError]) -> None:
    """Raise `error` beyond `MAX_DEPTH`; one level of containers at a time, without recursion."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    if level:
        raise error(f"{source} is nested deeper than {MAX_DEPTH} levels")


def _non_finite(value: Any, place: str = "") -> Iterator[str]:
    """The places of numbers that are not finite, dotted, as they stand in messages."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"'{place}'"
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = show_text(str(key))
            yield from _non_finite(inner, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _non_finite(inner, f"{place}[{index}]")


def _lone_surrogate(value: Any) -> str | None:
    """The first half of a surrogate pair in the texts of a value."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as problem:
        return str(problem.object[problem.start])
    return None


def _json_problem(problem: ValueError) -> str:
    if isinstance(problem, json.JSONDecodeError):
        return f"{problem.msg} in line {problem.lineno}, column {problem.colno}"
    return show_text(str(problem))


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a device or socket"


def _type_name(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
