"""Progress of the host's stages: a bar on a terminal, nothing into a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from awq_edge.terminal_text import one_line

_PARTS = 1000  # of an engine that is built


@contextmanager
def block_progress(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that moves once a block. Yields the observer: (done, total, the block in words)."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=None)

        def observe(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=one_line(what))

        yield observe


@contextmanager
def build_progress(console: Console) -> Iterator[Callable[[float, str], None]]:
    """A bar for the engine that a run may have to build first: it comes with the first call and
    goes with the last, (1.0, ""). Yields the observer: (part done, the stage in words)."""
    with ExitStack() as stack:
        bars: list[Callable[[int, int, str], None]] = []

        def observe(part: float, what: str) -> None:
            if part >= 1.0:
                bars.clear()
                stack.close()
                return
            if not bars:
                bars.append(stack.enter_context(block_progress(console)))
            bars[0](int(part * _PARTS), _PARTS, what)

        yield observe


@contextmanager
def token_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar over tokens. Yields the observer: (tokens done, tokens)."""
    with block_progress(console) as observe:
        yield lambda done, total: observe(done, total, "tokens")
