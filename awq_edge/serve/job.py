"""One accepted request on its way through the queue, and what the worker tells of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from awq_edge.runtime.generation import Generation
from awq_edge.serve.task import Task


@dataclass(frozen=True)
class ScoredToken:
    """A token's text and log-probabilities. offset: characters of the answer before it.

    top: the likeliest tokens at its place, as (bytes, log-probability).
    """

    data: bytes
    logprob: float
    offset: int
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class AnswerDelta:
    """Text as it comes. tokens: those it is made of, where log-probabilities were asked for.

    thought: it belongs to the thoughts before the answer.
    """

    text: str
    tokens: Sequence[ScoredToken] = ()
    thought: bool = False


@dataclass(frozen=True)
class Finished:
    """The end of an answer. tokens: those that no piece had."""

    generation: Generation
    tokens: Sequence[ScoredToken] = ()


@dataclass(frozen=True)
class Failed:
    """There is no answer, or no more of it."""

    error: BaseException


Event = AnswerDelta | Finished | Failed


class Job:
    """Implements `Schedulable`. deliver: called by the worker with each event, in order."""

    def __init__(self, client: str, task: Task, deliver: Callable[[Event], None]) -> None:
        self.task = task
        self.deliver = deliver
        self.arrived = time.perf_counter()
        self._client = client
        self._cancelled = threading.Event()

    @property
    def client(self) -> str:
        return self._client

    @property
    def cancelled(self) -> threading.Event:
        return self._cancelled

    def fail(self, error: BaseException) -> None:
        self.deliver(Failed(error))
