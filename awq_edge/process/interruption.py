"""Ctrl-C and SIGTERM: an exception that says which work is kept and how to go on.

The text is the exception's own: `str(KeyboardInterrupt("3 of 30 blocks are kept"))`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. number: of the signal."""

    number: int = signal.SIGTERM


@contextlib.contextmanager
def keeping(describe: Callable[[], str]) -> Iterator[None]:
    """Give an interruption inside the block the text of `describe()`, unless it has one."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not stop.args:
            stop.args = (describe(),)
        raise


@contextlib.contextmanager
def termination_as_exception() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Terminated and SIGINT KeyboardInterrupt, so that unfinished
    files are removed.

    One that the caller ignores (nohup) stays ignored. Without effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    handlers: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    handlers |= dict.fromkeys(numbers, _terminate)
    before = {}
    try:
        for number, raising in handlers.items():
            handler = signal.getsignal(number)
            if handler != signal.SIG_IGN:
                before[number] = handler
                signal.signal(number, raising)
        yield
    finally:
        for number, handler in before.items():
            # None: a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    stop = Terminated()
    stop.number = number
    raise stop
