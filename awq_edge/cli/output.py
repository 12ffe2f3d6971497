"""Outputs: text and tables for people, JSON in a file or alone on standard output.

Printed text passes through `awq_edge.terminal_text`; text for a file is exact.
"""

from __future__ import annotations

import io
import json
import os
import sys
import uuid
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.outputs import report_kind, require_apart
from awq_edge.artifacts.paths import user_path
from awq_edge.errors import ConfigError
from awq_edge.terminal_text import escaped_json, one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

# A path or name that a command was given to read; None where it was not.
Read = str | Path | None
# How files of this project begin that have no format in them, by the flag that names them.
_BEGINNINGS = {"--csv": b"prompt_tokens,generated_tokens,", "--html": b"<!doctype html>"}


def open_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A rich console on a standard stream, for text that may come from outside.

    A string, in a table too, is one line without markup; an intended line break stands in a
    `rich.text.Text`.

    width: characters, None for the terminal's.
    """
    from awq_edge.cli.safe_console import SafeConsole

    return SafeConsole(file=_text_stream(stderr=stderr), width=width)


def say(text: str, *, stderr: bool = False) -> None:
    """Print one line that may hold text from outside."""
    print(one_line(text), file=_text_stream(stderr=stderr), flush=True)


class AnswerWriter:
    """A model's text as it comes: exact into files and pipes, safe on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held = ""  # a carriage return, whose line feed may come with the next piece

    def write(self, text: str) -> None:
        if self._stream.isatty():
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""
            text = printable(text.removesuffix("\r"))
        self._stream.write(text)
        self._stream.flush()


def _text_stream(*, stderr: bool) -> TextIO:
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        # A model's text may hold what the terminal's encoding lacks.
        stream.reconfigure(errors="replace")
    return stream


class FileTarget:
    """The value of a flag that names a file to write, checked before the work starts."""

    def __init__(self, flag: str, value: str | None, reads: Iterable[Read] = ()) -> None:
        """Raises ConfigError when the file cannot be written, is or lies in an input of the
        command, or holds a file that this flag has not written.

        flag: as typed, for messages.
        reads: inputs of the command, as given.
        """
        if value == "-":
            raise ConfigError(f"{flag} -: standard output takes --json alone; name a file")
        self._flag = flag
        self._path = None if value is None else user_path(value, flag)
        if self._path is not None:
            require_apart(self._path, [("input", each) for each in reads], flag)
            _require_writable(flag, self._path)
            _require_ours(flag, self._path)

    def write(self, text: str, *, interrupted: bool = False) -> None:
        """Write the text and a line end, whole or not at all; nothing where no file was given.

        A line tells of a replaced file. A report that is interrupted, or of another kind than the
        file's, gets a name of its own.
        """
        if self._path is None:
            return
        try:
            if _is_special(self._path):
                self._path.write_text(text + "\n", encoding="utf-8")
                return
            path, said = self._place(text + "\n", interrupted)
            with atomic_file(path) as work:
                work.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self._flag, self._path, error) from None
        if said is not None:
            say(said, stderr=True)

    def _place(self, text: str, interrupted: bool) -> tuple[Path, str | None]:
        """The path for the text, chosen so that no report is lost silently, and a line about it."""
        path = self._path
        assert path is not None
        if not path.is_file() or (size := path.stat().st_size) == 0:
            return path, None
        if size == len(text.encode()) and path.read_text(encoding="utf-8") == text:
            return path, None
        if interrupted or (
            self._flag == "--json" and report_kind(path) != json.loads(text).get("format", "")
        ):
            why = "this one was interrupted" if interrupted else "it is of another kind"
            beside = _free_name(path)
            return beside, f"{path} keeps the report that it has, {why}: written to {beside}"
        written = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        return path, f"{path}: the report of {written}, {size:,} bytes, is replaced"


class JsonTarget:
    """The value of a `--json FILE|-` flag, checked before the work starts."""

    def __init__(self, value: str | None, reads: Iterable[Read] = ()) -> None:
        """The arguments of `FileTarget`, with `--json` as the flag."""
        self.owns_stdout = value == "-"
        self._file = FileTarget("--json", None if value == "-" else value, reads)

    @property
    def text_stream(self) -> TextIO:
        """The stream of text for people: standard output, or standard error where JSON has that."""
        return _text_stream(stderr=self.owns_stdout)

    def console(self, *, width: int | None = None) -> Console:
        """A console on `text_stream`; it prints names and paths exactly."""
        return open_console(stderr=self.owns_stdout, width=width)

    def write(self, text: str, *, interrupted: bool = False) -> None:
        """Write the JSON text as `FileTarget` does; nothing where no target was given."""
        if self.owns_stdout:
            sys.stdout.write(escaped_json(text) + "\n")
            sys.stdout.flush()
        else:
            self._file.write(text, interrupted=interrupted)


def _require_ours(flag: str, path: Path) -> None:
    """Raise ConfigError where a file would be replaced that this project has not written."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    beginning = _BEGINNINGS.get(flag)
    if beginning is None:
        ours = report_kind(path) is not None
    else:
        with path.open("rb") as file:
            ours = file.read(len(beginning)).lower() == beginning
    if not ours:
        raise ConfigError(
            f"{flag} {path}: exists and was not written by awq-edge; choose another file, or "
            "remove it first"
        )


def _free_name(path: Path) -> Path:
    """`report.2.json` beside `report.json`, or the next free number."""
    number = 2
    while os.path.lexists(beside := path.with_name(f"{path.stem}.{number}{path.suffix}")):
        number += 1
    return beside


def _is_special(path: Path) -> bool:
    """True for a device or pipe, which renaming a file over it would replace."""
    return path.exists() and not path.is_file()


def _require_writable(flag: str, path: Path) -> None:
    """Raise ConfigError where a file cannot be made: permissions do not tell of a read-only
    disk."""
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a directory; give the name of a file")
    try:
        if _is_special(path):
            return
        probe = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
        probe.touch(exist_ok=False)
        probe.unlink()
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise _unwritable(flag, path, error) from None


def _unwritable(flag: str, path: Path, error: OSError) -> ConfigError:
    other = ", or - for standard output" if flag == "--json" else ""
    return ConfigError(
        f"{flag} {path}: cannot be written: {error.strerror}; choose another file{other}"
    )
