"""The standard streams of the process, with a rule for closed, full and broken ones."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

from awq_edge.errors import ResourceError


class ReaderLeft(Exception):
    """Whoever read standard output has closed the pipe (`| head`): an end, not a failure."""


class StandardStreams:
    """The process's standard streams: `open` puts guards in place of sys.stdout and sys.stderr,
    `close` removes them.

    A stream that is not the process's own (a test's) is left alone.
    """

    def __init__(self) -> None:
        self._replaced: list[tuple[str, TextIO]] = []

    @property
    def guarded(self) -> bool:
        """True if the streams are the process's own."""
        return bool(self._replaced)

    def open(self) -> None:
        """Guard the streams. Raises ResourceError where standard output is closed."""
        closed = _fill_closed_descriptors()
        if sys.stderr is None:
            sys.stderr = open(os.devnull, "w", encoding="utf-8")
        self._guard("stderr", _ErrorStream)
        if sys.stdout is None or 1 in closed:
            raise ResourceError("standard output is closed; redirect it to a file, or to /dev/null")
        self._guard("stdout", _OutputStream)

    def flush(self) -> None:
        """Write the buffered text. Raises ReaderLeft and ResourceError."""
        if sys.stdout is not None:
            sys.stdout.flush()

    def close(self) -> None:
        """Restore the streams; text that cannot be written is dropped."""
        for name, original in reversed(self._replaced):
            guard = getattr(sys, name)
            setattr(sys, name, original)
            if not isinstance(guard, _GuardedStream):
                continue
            try:
                guard.flush()
            except (ReaderLeft, ResourceError):
                _discard(guard.fileno())
                guard.flush()
            guard.detach()
        self._replaced.clear()

    def _guard(self, name: str, guard: type[_GuardedStream]) -> None:
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:
            return
        stream.flush()
        guarded = guard(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, guarded)
        self._replaced.append((name, stream))


class _GuardedStream(io.TextIOWrapper):
    pass


class _OutputStream(_GuardedStream):
    """Standard output whose errors name their cause: the machine, or a reader that left."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _output_error(error) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _output_error(error) from None


class _ErrorStream(_GuardedStream):
    """Standard error that nobody may be reading: a lost message changes no exit code."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def _output_error(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return ReaderLeft()
    return ResourceError(
        f"standard output cannot be written: {error.strerror}; free some space, or send it "
        "elsewhere"
    )


def _fill_closed_descriptors() -> set[int]:
    """Open /dev/null for each of 0, 1 and 2 that is closed; returns these.

    The next opened file would take the number, and text that libraries print would go into it.
    """
    closed = set()
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(descriptor)
            opened = os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
    return closed


def _discard(descriptor: int) -> None:
    """Drop the text that is still buffered for a descriptor."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
