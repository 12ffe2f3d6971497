"""Ctrl-C as a request to end the answer, not the program."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Inside `with`, the first SIGINT makes `requested` true; the second is a KeyboardInterrupt.

    So is one that comes before anybody has asked: what cannot be ended politely is just ended.
    """

    def __init__(self) -> None:
        self._requested = False
        self._asked = False
        self._previous: Any = None

    def requested(self) -> bool:
        """Whether Ctrl-C came."""
        self._asked = True
        return self._requested

    def __enter__(self) -> Interrupt:
        self._requested = self._asked = False
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested or not self._asked:
            raise KeyboardInterrupt
        self._requested = True
