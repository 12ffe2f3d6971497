"""A rich console that text from outside cannot command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from awq_edge.terminal_text import one_line, printable


class SafeConsole(Console):
    """A console whose strings are one line each and hold no markup; the terminal receives no
    controls but rich's own."""

    def __init__(self, *, file: TextIO, width: int | None = None) -> None:
        super().__init__(file=file, width=width, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Clean a string before it is measured, so that columns stay aligned."""
        return super().render_str(one_line(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Clean a `Text` too: only rich's own control segments may hold escapes."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield Segment(printable(segment.text), segment.style)
            else:
                yield segment
