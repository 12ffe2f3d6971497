'''Messages of a person at a terminal, or of a pipe.

A line is a message. `"""` begins one of several lines, up to the next `"""`; a backslash at the end
of a typed line continues it. A paste is one message, whatever its lines.
'''

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import Any

from awq_edge.cli.chat_history import History
from awq_edge.errors import ConfigError

QUOTES = '"""'
_PROMPT = "> "
_CONTINUED = ". "
# Lines of a paste come within this; nobody types one so quickly.
_PASTE_SECONDS = 0.03


class MessageReader:
    """Reads one message after the other. note: shows a line to a person. completions: of what was
    typed, the whole lines that Tab offers."""

    def __init__(
        self,
        note: Callable[[str], None],
        history: History,
        completions: Callable[[str], list[str]] = lambda line: [],
    ) -> None:
        self._note = note
        self._history = history
        edits = is_terminal() and sys.stdout.isatty()
        self._readline = _line_editor() if edits else None
        self._tells_pastes = self._readline is not None and _bracket_pastes(self._readline)
        if self._readline is not None:
            for entry in history.entries():
                self._readline.add_history(entry)
            if self._tells_pastes:  # else a tab in a paste would be taken for the key
                _complete_by(self._readline, completions)

    def read(self) -> str | None:
        """One message; None at the end of the input. Ctrl-C drops what was typed, twice leaves.

        Raises ConfigError for input that is not text in the locale's encoding, and for a pipe that
        ends in the middle of a message.
        """
        try:
            if not is_terminal():
                return self._piped()
            return self._typed()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"standard input: byte {error.start} is not {error.encoding}; convert it"
            ) from None

    def _piped(self) -> str | None:
        line = _piped_line()
        if line is None or not opens(line):
            return line

        def following() -> str:
            more = _piped_line()
            if more is None:
                raise ConfigError(f"standard input ends in a message that {QUOTES} began; close it")
            return more

        return quoted(line, following)

    def _typed(self) -> str | None:
        for interrupted in (False, True):
            try:
                message = self._message()
                self._remember(message)
                return message
            except EOFError:
                self._note("")  # the shell's prompt begins a line of its own
                break
            except KeyboardInterrupt:
                self._note("" if interrupted else "\n(Ctrl-C again, or Ctrl-D, leaves)")
        return None

    def _message(self) -> str:
        typed_ahead = not self._tells_pastes and _is_waiting(0)  # during the answer, by hand
        line = self._line(_PROMPT)
        if not self._tells_pastes and not typed_ahead:
            line = self._pasted(line)
        if opens(line):
            return quoted(line, lambda: self._line(_CONTINUED))
        while line.endswith("\\"):
            line = line[:-1] + "\n" + self._line(_CONTINUED)
        return line

    def _pasted(self, line: str) -> str:
        """The line with the rest of its paste, where the editor does not mark pastes."""
        lines = [line]
        while _is_waiting(_PASTE_SECONDS):
            lines.append(self._line(""))
        return "\n".join(lines).rstrip("\n") if len(lines) > 1 else line

    def _line(self, prompt: str) -> str:
        """One line, edited and recalled where Python has GNU readline."""
        if sys.stdout.isatty():
            return input(prompt)
        # The answers go to a file: the prompt does not belong there.
        print(prompt, end="", file=sys.stderr, flush=True)
        return input("")

    def _remember(self, message: str) -> None:
        if not message.strip():
            return
        if self._history.add(message) and self._readline is not None:
            self._readline.add_history(message)


def opens(line: str) -> bool:
    """True if the line begins a message in `\"\"\"`."""
    return line.lstrip().startswith(QUOTES)


def quoted(line: str, following: Callable[[], str]) -> str:
    """The message in `\"\"\"` that `line` begins. following: returns the next line."""
    text = line.lstrip()[len(QUOTES) :]
    while not text.rstrip().endswith(QUOTES):
        text += "\n" + following()
    return text.rstrip()[: -len(QUOTES)].removeprefix("\n").removesuffix("\n")


def is_terminal() -> bool:
    """True if a person types."""
    return sys.stdin is not None and sys.stdin.isatty()


def _piped_line() -> str | None:
    if sys.stdin is None:  # closed
        return None
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _line_editor() -> Any:
    """Python's readline if it is GNU's, which recalls messages of several lines; None for another,
    which edits lines too, as soon as it is imported."""
    try:
        import readline
    except ImportError:
        return None
    if "libedit" in (readline.__doc__ or ""):
        return None
    readline.set_auto_history(False)  # a message is one entry, not each of its lines
    return readline


def _bracket_pastes(readline: Any) -> bool:
    """Have the terminal mark pastes, where it can and the library knows of it (8.0)."""
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        readline.parse_and_bind("set enable-bracketed-paste off")
        return False
    readline.parse_and_bind("set enable-bracketed-paste on")
    return bool(getattr(readline, "_READLINE_RUNTIME_VERSION", 0x700) >= 0x800)


def _complete_by(readline: Any, completions: Callable[[str], list[str]]) -> None:
    """Have Tab offer whole lines."""
    candidates: list[str] = []

    def complete(line: str, number: int) -> str | None:
        if number == 0:
            candidates[:] = completions(line)
        return candidates[number] if number < len(candidates) else None

    readline.set_completer_delims("\n")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


def _is_waiting(seconds: float) -> bool:
    try:
        return bool(select.select([sys.stdin], [], [], seconds)[0])
    except (OSError, ValueError):  # no file that can be waited for
        return False
