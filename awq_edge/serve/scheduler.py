"""The queue in front of the one session: bounded, fair between clients, every job accounted for.

    submit ─► [client A: j1 j4] ─┐
              [client B: j2]     ├─ turns ─► worker thread ─► execute(job), one at a time
              [client C: j3]    ─┘

Fair means: clients that wait take turns, one job each, and the jobs of one client run in the order
in which they came. A client with a hundred jobs delays another client's by one job, not by hundred;
nor does it keep the other out: for clients of whom nothing waits there is a quarter more room.

A job that was accepted ends exactly once, as completed, cancelled or failed:

    submitted = completed + cancelled + failed + queued + running
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

Outcome = Literal["completed", "cancelled", "failed"]

# Retry-After is the time that the queue takes at the pace of the last jobs, within these seconds.
_SHORTEST_RETRY = 1
_LONGEST_RETRY = 60
_NEWCOMERS_SHARE = 4
_PACE = 0.3  # weight of the last job in the moving average

_log = logging.getLogger(__name__)


class Schedulable(Protocol):
    """A job, as the scheduler sees it. client: whose turn it takes."""

    @property
    def client(self) -> str: ...

    @property
    def cancelled(self) -> threading.Event: ...

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits that there will be no answer. Must not raise."""
        ...


class QueueFullError(Exception):
    """The queue is full. retry_after: whole seconds after which to ask again."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already")
        self.retry_after = retry_after


class ClosedError(Exception):
    """The scheduler takes no jobs any more."""


@dataclass(frozen=True)
class SchedulerState:
    """Counts of the jobs at one moment."""

    queued: int
    running: int
    closed: bool
    submitted: int
    refused: int  # jobs that met a full or closed queue, not among the submitted
    completed: int
    cancelled: int
    failed: int
    crashes_in_row: int  # the last jobs whose execution raised

    @property
    def idle(self) -> bool:
        return self.queued == 0 and self.running == 0


J = TypeVar("J", bound=Schedulable)


class Scheduler(Generic[J]):
    """One thread that runs `execute(job)` for each job.

    An exception of `execute` fails the job and counts as a defect: expected failures are told to
    the client by `execute`, which then returns "failed".
    """

    def __init__(self, execute: Callable[[J], Outcome], max_queue: int) -> None:
        """max_queue: jobs that wait, without the running one and the newcomers' share."""
        self._execute = execute
        self._max_queue = max_queue
        self._condition = threading.Condition()
        # Clients in the order of their turns; none without a waiting job.
        self._turns: OrderedDict[str, deque[J]] = OrderedDict()
        self._running: J | None = None
        self._closed = self._stopped = False
        self._counts: dict[Outcome, int] = {"completed": 0, "cancelled": 0, "failed": 0}
        self._submitted = self._refused = self._crashes_in_row = 0
        self._seconds_per_job = 1.0
        self._thread = threading.Thread(target=self._work, name="awq-edge-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: J) -> None:
        """Queue a job. Raises QueueFullError, or ClosedError after `close`."""
        with self._condition:
            if self._closed:
                self._refused += 1
                raise ClosedError("the server is shutting down")
            if self._queued() >= self._room(job.client):
                self._refused += 1
                wait = max(self._seconds_per_job * self._queued(), _SHORTEST_RETRY)
                raise QueueFullError(self._queued(), int(min(wait, _LONGEST_RETRY)))
            self._turns.setdefault(job.client, deque()).append(job)
            self._submitted += 1
            self._condition.notify_all()

    def cancel(self, job: J) -> None:
        """End a job whose answer nobody wants: a queued one leaves the queue, a running one stops
        at its next step, one that has ended is left alone."""
        with self._condition:
            job.cancelled.set()
            waiting = self._turns.get(job.client)
            if waiting is None or job not in waiting:
                return
            waiting.remove(job)
            if not waiting:
                del self._turns[job.client]
            self._counts["cancelled"] += 1
            self._condition.notify_all()

    def close(self) -> None:
        """Refuse new jobs; accepted ones go on."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is queued or running; False where it took longer."""
        with self._condition:
            return self._condition.wait_for(lambda: self._state().idle, seconds)

    def abandon(self) -> None:
        """Close, fail what is queued with ClosedError and cancel what runs."""
        with self._condition:
            self._closed = True
            jobs = [job for waiting in self._turns.values() for job in waiting]
            self._turns.clear()
            self._counts["failed"] += len(jobs)
            if self._running is not None:
                self._running.cancelled.set()
            self._condition.notify_all()
        for job in jobs:
            job.fail(ClosedError("the server is shutting down"))

    def stop(self, seconds: float) -> bool:
        """Abandon everything and end the thread; False where it took longer."""
        self.abandon()
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def state(self) -> SchedulerState:
        with self._condition:
            return self._state()

    def _state(self) -> SchedulerState:
        return SchedulerState(
            queued=self._queued(),
            running=int(self._running is not None),
            closed=self._closed,
            submitted=self._submitted,
            refused=self._refused,
            crashes_in_row=self._crashes_in_row,
            **self._counts,
        )

    def _queued(self) -> int:
        return sum(map(len, self._turns.values()))

    def _room(self, client: str) -> int:
        """The queue's length below which this client's next job is accepted."""
        newcomers = 0 if client in self._turns else self._max_queue // _NEWCOMERS_SHARE
        idle = self._running is None  # the worker takes one at once
        return self._max_queue + newcomers + idle

    def _next(self) -> J | None:
        """Wait for a job and take it; None when the scheduler was stopped."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or bool(self._turns))
            if self._stopped:
                return None
            client, waiting = self._turns.popitem(last=False)
            job = waiting.popleft()
            if waiting:
                self._turns[client] = waiting  # behind everyone else
            self._running = job
            return job

    def _work(self) -> None:
        while (job := self._next()) is not None:
            started = time.perf_counter()
            outcome: Outcome = "failed"
            crashed = False
            try:
                outcome = self._execute(job)
            except BaseException as error:  # a panic of a library in Rust is no Exception
                _log.exception("a request failed")
                crashed = True
                job.fail(error)
            seconds = time.perf_counter() - started
            with self._condition:
                self._running = None
                self._counts[outcome] += 1
                if crashed:
                    self._crashes_in_row += 1
                elif outcome == "completed":
                    self._crashes_in_row = 0
                    self._seconds_per_job += _PACE * (seconds - self._seconds_per_job)
                self._condition.notify_all()
            del job  # its ids and callbacks are not kept alive while the worker waits
