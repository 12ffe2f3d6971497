"""Ctrl-C as a request to end the answer, not the program."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from awq_edge.process.interruption import Terminated

_SIGNALS = [signal.SIGINT, signal.SIGTERM]


class Interrupt:
    """Inside `with`, the first SIGINT or SIGTERM makes `requested` true; the second raises
    KeyboardInterrupt, or Terminated.

    So does one before anybody has asked: work that cannot be ended politely is just ended.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._asked = False
        self._previous: dict[int, Any] = {}

    def requested(self) -> bool:
        """True if a signal came."""
        self._asked = True
        return self._number is not None

    @property
    def terminated(self) -> bool:
        """True if the signal was SIGTERM: the program is to end, not the answer alone."""
        return self._number == signal.SIGTERM

    @property
    def exit_code(self) -> int:
        """The exit code after a signal: 130 or 143; 0 without one."""
        return 0 if self._number is None else 128 + self._number

    def __enter__(self) -> Interrupt:
        self._number, self._asked = None, False
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None or not self._asked:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self._number = number
