"""One accepted request on its way through the queue, and the worker's events about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from awq_edge.runtime.generation import Generation
from awq_edge.serve.task import Task


@dataclass(frozen=True)
class ScoredToken:
    """A token's text and log-probabilities."""

    data: bytes
    logprob: float
    offset: int  # characters of the answer before it
    # the likeliest tokens at its place, as (bytes, log-probability)
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class AnswerDelta:
    """Text as it comes."""

    text: str
    tokens: Sequence[ScoredToken] = ()  # its tokens, where log-probabilities were asked for
    thought: bool = False  # the text belongs to the thoughts before the answer


@dataclass(frozen=True)
class Finished:
    """The end of an answer. tokens: the tokens that no delta had."""

    generation: Generation
    tokens: Sequence[ScoredToken] = ()


@dataclass(frozen=True)
class Failed:
    """The end of a job without an answer, or without the rest of it."""

    error: BaseException


Event = AnswerDelta | Finished | Failed


class Job:
    """A request in the queue; implements `Schedulable`. deliver: receives each event, in order."""

    def __init__(self, client: str, task: Task, deliver: Callable[[Event], None]) -> None:
        self.task = task
        self.deliver = deliver
        self.arrived = time.perf_counter()
        self.client = client
        self.cancelled = threading.Event()

    def fail(self, error: BaseException) -> None:
        self.deliver(Failed(error))
