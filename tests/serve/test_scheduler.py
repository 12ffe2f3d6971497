"""The queue alone: no model, no HTTP. Jobs are held in the worker by events, never by sleeping."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from awq_edge.serve.scheduler import (
    ClosedError,
    Outcome,
    QueueFullError,
    Scheduler,
    SchedulerState,
)

PATIENCE = 10.0  # seconds after which something that should have happened has not


@dataclass(eq=False)
class FakeJob:
    name: str
    client: str = "a"
    cancelled: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)


class FakeModel:
    """Runs jobs as a model does: for as long as it is not let go, and until they are cancelled."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.fault: Callable[[str], BaseException | None] = lambda name: None

    def __call__(self, job: FakeJob) -> Outcome:
        self.ran.append(job.name)
        self.started.release()
        while not self.go.acquire(timeout=0.005):
            if job.cancelled.is_set():
                return "cancelled"
        if (error := self.fault(job.name)) is not None:
            raise error
        return "completed"

    def wait_started(self) -> None:
        assert self.started.acquire(timeout=PATIENCE)

    def let_go(self, count: int) -> None:
        for _ in range(count):
            self.go.release()


@contextmanager
def running(model: FakeModel, max_queue: int = 10) -> Iterator[Scheduler[FakeJob]]:
    scheduler: Scheduler[FakeJob] = Scheduler(model, max_queue)
    scheduler.start()
    try:
        yield scheduler
    finally:
        assert scheduler.stop(PATIENCE)


def balanced(state: SchedulerState) -> bool:
    ended = state.completed + state.cancelled + state.failed
    return state.submitted == ended + state.queued + state.running


def test_jobs_of_one_client_run_in_their_order() -> None:
    model = FakeModel()
    with running(model) as scheduler:
        for name in "12345":
            scheduler.submit(FakeJob(name))
        model.let_go(5)
        assert scheduler.wait_idle(PATIENCE)
        assert model.ran == list("12345")
        assert scheduler.state().completed == 5


def test_clients_take_turns_whatever_one_of_them_queued() -> None:
    model = FakeModel()
    with running(model) as scheduler:
        for name in ("a1", "a2", "a3", "a4"):
            scheduler.submit(FakeJob(name, "a"))
        model.wait_started()
        for name in ("b1", "b2", "c1"):
            scheduler.submit(FakeJob(name, name[0]))
        model.let_go(7)
        assert scheduler.wait_idle(PATIENCE)
    assert model.ran == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    model = FakeModel()
    with running(model, max_queue=2) as scheduler:
        scheduler.submit(FakeJob("runs"))
        model.wait_started()
        scheduler.submit(FakeJob("waits"))
        scheduler.submit(FakeJob("waits too"))
        with pytest.raises(QueueFullError, match="2 requests are waiting") as refused:
            scheduler.submit(FakeJob("one more"))
        assert 1 <= refused.value.retry_after <= 60
        assert scheduler.state().refused == 1
        model.let_go(1)
        model.wait_started()
        scheduler.submit(FakeJob("now there is room"))
        model.let_go(3)
        assert scheduler.wait_idle(PATIENCE)
        assert "one more" not in model.ran
        assert scheduler.state().submitted == 4


def test_a_client_that_fills_the_queue_keeps_no_other_out() -> None:
    model = FakeModel()
    with running(model, max_queue=8) as scheduler:
        scheduler.submit(FakeJob("a0", "a"))
        model.wait_started()
        for count in range(8):
            scheduler.submit(FakeJob(f"a{count + 1}", "a"))
        for client in ("b", "c"):  # a quarter more, for those of whom nothing waits
            scheduler.submit(FakeJob(client, client))
            for taken in ("a", "b"):
                with pytest.raises(QueueFullError):
                    scheduler.submit(FakeJob("more", taken))
        with pytest.raises(QueueFullError, match="10 requests are waiting"):
            scheduler.submit(FakeJob("d", "d"))
        model.let_go(11)
        assert scheduler.wait_idle(PATIENCE)
    assert model.ran[:4] == ["a0", "a1", "b", "c"]
    assert len(model.ran) == 11


def test_without_a_queue_one_job_runs() -> None:
    model = FakeModel()
    with running(model, max_queue=0) as scheduler:
        scheduler.submit(FakeJob("runs"))
        model.wait_started()
        with pytest.raises(QueueFullError):
            scheduler.submit(FakeJob("waits"))
        model.let_go(1)


def test_a_cancelled_job_that_waits_never_runs_and_makes_room() -> None:
    model = FakeModel()
    with running(model, max_queue=1) as scheduler:
        scheduler.submit(FakeJob("runs"))
        model.wait_started()
        waits = FakeJob("waits")
        scheduler.submit(waits)
        scheduler.cancel(waits)
        scheduler.cancel(waits)  # again: nothing more happens
        assert scheduler.state().cancelled == 1
        scheduler.submit(FakeJob("has its place"))
        model.let_go(2)
        assert scheduler.wait_idle(PATIENCE)
        assert model.ran == ["runs", "has its place"]
        assert balanced(scheduler.state())


def test_a_cancelled_job_that_runs_stops() -> None:
    model = FakeModel()
    with running(model) as scheduler:
        job = FakeJob("runs")
        scheduler.submit(job)
        model.wait_started()
        scheduler.cancel(job)
        assert scheduler.wait_idle(PATIENCE)
        assert scheduler.state().cancelled == 1


def test_cancelling_a_job_that_has_ended_counts_nothing() -> None:
    model = FakeModel()
    with running(model) as scheduler:
        job = FakeJob("ends")
        scheduler.submit(job)
        model.let_go(1)
        assert scheduler.wait_idle(PATIENCE)
        scheduler.cancel(job)
        assert (scheduler.state().completed, scheduler.state().cancelled) == (1, 0)


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("error", [ValueError("defect"), Panic("defect")])
def test_a_job_that_raises_fails_alone(error: BaseException) -> None:
    model = FakeModel()
    model.fault = lambda name: error if name == "bad" else None
    with running(model) as scheduler:
        bad = FakeJob("bad")
        scheduler.submit(bad)
        model.let_go(1)
        assert scheduler.wait_idle(PATIENCE)
        assert bad.errors == [error]
        assert (scheduler.state().failed, scheduler.state().crashes_in_row) == (1, 1)
        scheduler.submit(FakeJob("good"))
        model.let_go(1)
        assert scheduler.wait_idle(PATIENCE)
        assert (scheduler.state().completed, scheduler.state().crashes_in_row) == (1, 0)


def test_closed_it_finishes_what_it_has_and_takes_nothing() -> None:
    model = FakeModel()
    with running(model) as scheduler:
        scheduler.submit(FakeJob("runs"))
        scheduler.submit(FakeJob("waits"))
        scheduler.close()
        with pytest.raises(ClosedError):
            scheduler.submit(FakeJob("late"))
        assert not scheduler.wait_idle(0.01)
        model.let_go(2)
        assert scheduler.wait_idle(PATIENCE)
        assert model.ran == ["runs", "waits"]
        assert scheduler.state().refused == 1


def test_abandoned_every_job_is_told() -> None:
    model = FakeModel()
    with running(model) as scheduler:
        jobs = [FakeJob("runs"), FakeJob("waits", "a"), FakeJob("waits", "b")]
        for job in jobs:
            scheduler.submit(job)
        model.wait_started()
        scheduler.abandon()
        assert scheduler.wait_idle(PATIENCE)
        assert [type(error) for job in jobs[1:] for error in job.errors] == [ClosedError] * 2
        assert jobs[0].cancelled.is_set()
        state = scheduler.state()
        assert (state.cancelled, state.failed, state.completed) == (1, 2, 0)
        assert balanced(state)


def test_from_many_threads_the_counts_add_up() -> None:
    """Submitting and cancelling at once: whatever happens to a job, it is counted once."""
    model = FakeModel()
    model.let_go(10_000)
    refused = threading.Semaphore(0)
    with running(model, max_queue=5) as scheduler:

        def client(number: int) -> None:
            for count in range(50):
                job = FakeJob(f"{number}.{count}", str(number))
                try:
                    scheduler.submit(job)
                except QueueFullError:
                    refused.release()
                    continue
                if count % 3 == 0:
                    scheduler.cancel(job)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert scheduler.wait_idle(PATIENCE)
        state = scheduler.state()
    assert balanced(state)
    assert state.submitted + state.refused == 8 * 50
    assert len(model.ran) == len(set(model.ran))
    assert len(model.ran) >= state.completed
    for _ in range(state.refused):
        assert refused.acquire(blocking=False)
    assert not refused.acquire(blocking=False)
