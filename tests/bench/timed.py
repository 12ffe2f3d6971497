"""A session that takes a known time on a clock of its own, and a report of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from awq_edge.artifacts.directories import Bundle
from awq_edge.bench.build import build_bench_report
from awq_edge.bench.measure import Measurement, measure
from awq_edge.bench.monitor import Monitor
from awq_edge.bench.plan import Cell, Plan, ids_sha256
from awq_edge.bench.report import BenchReport
from awq_edge.runtime.memory import ProcessMemory
from awq_edge.runtime.model import LoadFigures, Model
from awq_edge.runtime.session import Float32
from awq_edge.runtime.tokenizer import Tokenizer
from awq_edge.sensors.power_mode import PowerModes
from awq_edge.sensors.reading import Absent, Reading
from tests.runtime.fakes import ScriptedSession

OTHERS = 0.75
MEMORY = ProcessMemory(rss=300, peak_rss=400, anonymous=200, file_backed=100)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedSession(ScriptedSession):
    """Prefill: `per_token` seconds a token. Decode: the next of `steps`, over and over. Every token
    is `answer`."""

    def __init__(
        self,
        clock: Clock,
        *,
        per_token: float = 0.25,
        steps: Sequence[float] = (0.5,),
        answer: int = 2,
    ) -> None:
        super().__init__(lambda ids: answer, vocab_size=300, context=128, prefill_chunk=8)
        self._clock = clock
        self._per_token = per_token
        self._steps = tuple(steps)
        self._decoded = 0

    def prefill(self, ids: Sequence[int]) -> Float32:
        self._clock.now += self._per_token * len(ids)
        return super().prefill(ids)

    def decode(self, token_id: int) -> Float32:
        self._clock.now += self._steps[self._decoded % len(self._steps)]
        self._decoded += 1
        return super().decode(token_id)


class FakeSensor:
    """Says what a function of the time says."""

    def __init__(
        self, name: str, clock: Clock, reading: Callable[[float], Reading], tick: float = 0.0
    ) -> None:
        self.name = name
        self.tick = tick
        self.covers = f"all of {name}"
        self._clock = clock
        self._reading = reading

    def read(self) -> Reading:
        return self._reading(self._clock())

    def close(self) -> None:
        pass


def monitor_of(clock: Clock, *sensors: FakeSensor) -> Monitor:
    """A monitor that looks only when it is told; other processes take three CPUs of four."""
    return Monitor(
        sensors,
        clock=clock,
        process_memory=lambda: ProcessMemory(300, 400, 200 + int(clock()), 100),
        other_cpu=lambda: OTHERS * (os.cpu_count() or 1) * clock(),
    )


def report_of(
    bundle: Path,
    *,
    plan: Plan | None = None,
    session: TimedSession | None = None,
    clock: Clock | None = None,
    monitor: Monitor | None = None,
    bandwidth: float | None = 1e9,
    absent: Sequence[Absent] = (),
    measured: Callable[[Measurement], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> BenchReport:
    """The report of a plan run on a fake session. measured: may change what was measured."""
    clock = clock or Clock()
    session = session or TimedSession(clock)
    monitor = monitor or monitor_of(clock)
    plan = plan or Plan((Cell(4, 6), Cell(16, 6)), warmup=1, repeats=5)
    opened = Bundle.open(bundle)
    figures = LoadFigures(0.5, 1.5, MEMORY, MEMORY)
    model = Model(opened, session, Tokenizer(bundle), None, figures)
    prompt = list(range(3, 3 + max(cell.prompt_tokens for cell in plan.cells)))
    monitor.sample()
    measurement = measure(session, plan, prompt, monitor, clock=clock, cancelled=cancelled)
    monitor.sample()
    if measured is not None:
        measured(measurement)
    return build_bench_report(
        model,
        plan,
        measurement,
        monitor,
        prompt_sha256=ids_sha256(prompt),
        after=MEMORY,
        device_bandwidth=bandwidth,
        absent=absent,
        power_modes=PowerModes("15W", "schedutil"),
    )
