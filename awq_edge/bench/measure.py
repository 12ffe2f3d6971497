"""Runs a plan on a session: rounds over all cells, warm-up rounds first.

A round takes every cell once, so that a machine that grows slower as it grows warm does so in all
cells alike, and a measurement ended by Ctrl-C has all cells. Greedy; only its length ends a
request.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from awq_edge.bench.monitor import Monitor, Sample
from awq_edge.bench.plan import Cell, Plan
from awq_edge.runtime.generation import Request, TokenLoop
from awq_edge.runtime.metrics import Timings
from awq_edge.runtime.session import Session


@dataclass(frozen=True)
class Repeat:
    """One request. first_token: the sample between prefill and decode."""

    timings: Timings
    begin: Sample
    first_token: Sample
    end: Sample


@dataclass
class Measurement:
    """The repeats of each cell, without the warm-up."""

    repeats: dict[Cell, list[Repeat]] = field(default_factory=dict)
    interrupted: bool = False  # some of the plan's are missing


def measure(
    session: Session,
    plan: Plan,
    prompt: Sequence[int],
    monitor: Monitor,
    *,
    clock: Callable[[], float] = time.perf_counter,
    cancelled: Callable[[], bool] | None = None,
    observer: Callable[[int, int, str], None] | None = None,
) -> Measurement:
    """Measure every cell of a plan.

    prompt: ids, as many as the longest prompt has.
    cancelled: asked before every execution; True ends the measurement with its complete repeats.
    observer: called after every request: (requests done, of how many, the running cell).
    """
    measurement = Measurement({cell: [] for cell in plan.cells})
    done = 0
    for number in range(plan.warmup + plan.repeats):
        for cell in plan.cells:
            if observer is not None:
                observer(done, plan.requests, f"{cell.prompt_tokens} + {cell.generated_tokens}")
            repeat = _request(session, cell, prompt, monitor, clock, cancelled)
            if repeat is None:
                measurement.interrupted = True
                return measurement
            if number >= plan.warmup:
                measurement.repeats[cell].append(repeat)
            done += 1
    if observer is not None:
        observer(done, plan.requests, "")
    return measurement


def _request(
    session: Session,
    cell: Cell,
    prompt: Sequence[int],
    monitor: Monitor,
    clock: Callable[[], float],
    cancelled: Callable[[], bool] | None,
) -> Repeat | None:
    """One request from an empty cache; None when it was cancelled."""
    session.reset()
    request = Request(
        prompt_ids=list(prompt[: cell.prompt_tokens]),
        max_new_tokens=cell.generated_tokens,
        cancelled=cancelled,
    )
    begin = monitor.sample()
    loop = TokenLoop(session, request, clock=clock)
    first_token: Sample | None = None
    with contextlib.closing(loop.tokens()) as tokens:
        for _ in tokens:
            if first_token is None:
                # Between the first token and the first decode step: in neither's time.
                first_token = monitor.sample()
    if first_token is None or loop.finish_reason != "length":
        return None
    return Repeat(loop.timings, begin, first_token, monitor.sample())
