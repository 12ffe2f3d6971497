"""The end of a failed command: one line on standard error, and an exit code."""

from __future__ import annotations

import contextlib
import io
import signal
import sys

from awq_edge.artifacts.paths import system_fault
from awq_edge.cli.streams import ReaderLeft
from awq_edge.errors import AwqEdgeError
from awq_edge.process.interruption import Terminated
from awq_edge.terminal_text import one_line, printable

_LONGEST = 2000  # characters; a template may raise, and another package print, what it likes
_NEUTRAL = "nothing half-written is left; give the same command again"


def exit_code(error: BaseException) -> int:
    """Print one line about the error that ended the command. Returns 2 for an error of the user's
    or the machine's, 1 for one of ours or where the reader left, 128 and the signal's number for an
    interruption."""
    if isinstance(error, KeyboardInterrupt):
        return _interrupted(error)
    if isinstance(error, ReaderLeft):
        return 1
    if isinstance(error, AwqEdgeError):
        return _failed(str(error), 2)
    if (fault := system_fault(error)) is not None:
        return _failed(str(fault), 2)
    if isinstance(error, ModuleNotFoundError):
        from awq_edge.extras import missing_extra

        if (missing := missing_extra(error)) is not None:
            return _failed(str(missing), 2)
    if (show := getattr(error, "show", None)) is not None:  # a usage error of the parser's
        shown = io.StringIO()
        show(file=shown)
        print(printable(shown.getvalue()), end="", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    return _failed(
        f"unexpected {type(error).__name__}: {error} "
        "(a defect of awq-edge: run again with --debug and report the traceback)",
        1,
    )


def _interrupted(stop: KeyboardInterrupt) -> int:
    number = stop.number if isinstance(stop, Terminated) else signal.SIGINT
    with contextlib.suppress(ValueError, OSError):
        signal.signal(number, signal.SIG_IGN)  # it is ending: a second one changes nothing
    word = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return _failed(f"{word}: {str(stop) or _NEUTRAL}", 128 + number)


def _failed(message: str, code: int) -> int:
    # Texts of other packages, in a message of ours, may be of several lines with their own indents.
    line = one_line(" ".join(message[: 2 * _LONGEST].split()))
    print(f"error: {line[:_LONGEST]}{'...' if len(line) > _LONGEST else ''}", file=sys.stderr)
    return code
