"""A reasoning model's thoughts on standard error: they are not the answer."""

from __future__ import annotations

import os
import sys

_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"


class ThoughtWriter:
    """Shows thoughts as they come, dim on a terminal, and an empty line after them."""

    def __init__(self, shown: bool) -> None:
        from awq_edge.cli.output import AnswerWriter

        self._stream = sys.stderr if shown else None
        self._writer = AnswerWriter(sys.stderr)
        self._open = False
        colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._dim = colours and self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> None:
        if self._stream is None:
            return
        if not self._open and self._dim:
            self._stream.write(_DIM)
        self._open = True
        self._writer.write(text)

    def end(self) -> None:
        """The answer begins, or there is none. May be called again."""
        if self._open and self._stream is not None:
            self._stream.write(_PLAIN if self._dim else "")
            self._writer.write("\n\n")
        self._open = False
