"""The report of a measurement."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence

from awq_edge.artifacts.directories import MANIFEST, hash_file
from awq_edge.bench.measure import Measurement, Repeat
from awq_edge.bench.monitor import Monitor, Sample, joules
from awq_edge.bench.plan import Cell, Plan
from awq_edge.bench.report import (
    BenchReport,
    CellReport,
    ClockReport,
    EnergyReport,
    PeakReport,
    PercentilesReport,
    PlanReport,
    RepeatReport,
    SampleReport,
    SensorReport,
    ThrottlingReport,
)
from awq_edge.device.cpu import describe_cpu
from awq_edge.run.build import (
    bandwidth_report,
    bundle_report,
    environment_report,
    memory_report,
    spread_report,
)
from awq_edge.runtime.memory import ProcessMemory
from awq_edge.runtime.metrics import Timings, percentiles, spread
from awq_edge.runtime.model import Model
from awq_edge.sensors.power_mode import PowerModes
from awq_edge.sensors.reading import Absent

_MOST_SAMPLES = 500  # of memory over time, in a report
_DIGITS = 9  # of seconds: nanoseconds
ENERGY_TICKS = 5  # updates of an energy counter that a phase must last: it is off by one at most
_LEAST_TICKED = 0.5  # CPU seconds that a share is told of: /proc/stat counts in ticks of 10 ms
OTHERS_LIMIT = 0.1  # share of the CPUs that other processes may take without a note
_BATCH_NOTE = "batch 1: a session runs one sequence at a time"


def build_bench_report(
    model: Model,
    plan: Plan,
    measurement: Measurement,
    monitor: Monitor,
    *,
    prompt_sha256: str,
    after: ProcessMemory,
    device_bandwidth: float | None,
    absent: Sequence[Absent],
    power_modes: PowerModes,
) -> BenchReport:
    """The report of a measurement. Raises KeyboardInterrupt when no repeat of any cell is complete.

    after: this process's memory at the end.
    device_bandwidth: bytes/s.
    """
    measured = {cell: repeats for cell, repeats in measurement.repeats.items() if repeats}
    if not measured:
        raise KeyboardInterrupt
    cpu = describe_cpu()
    sensors = [SensorReport(name=n, covers=c, absent=None) for n, c in monitor.covers.items()]
    sensors += [
        SensorReport(name=sensor.name, covers=None, absent=sensor.reason) for sensor in absent
    ]
    environment = environment_report(model, cpu)
    cells = tuple(
        _cell(model, cell, repeats, monitor, device_bandwidth) for cell, repeats in measured.items()
    )
    return BenchReport(
        bundle=bundle_report(model),
        manifest_sha256=hash_file(model.bundle.path / MANIFEST).sha256,
        plan=PlanReport(
            prompt_lengths=tuple(sorted({cell.prompt_tokens for cell in plan.cells})),
            generated_lengths=tuple(sorted({cell.generated_tokens for cell in plan.cells})),
            warmup=plan.warmup,
            repeats=plan.repeats,
            seed=plan.seed,
            prompt_sha256=prompt_sha256,
            context=model.session.context,
            sample_interval=plan.sample_interval,
        ),
        interrupted=measurement.interrupted,
        load=model.load_figures.verify_seconds + model.load_figures.session_seconds,
        cells=cells,
        memory=memory_report(model, after, cpu),
        memory_samples=memory_samples(monitor.samples),
        sensors=tuple(sensors),
        clocks=clocks(monitor.samples),
        throttling=throttling(monitor.samples),
        nvpmodel=power_modes.nvpmodel,
        governor=power_modes.governor,
        environment=environment.model_copy(
            update={
                "power_mode": None if power_modes == PowerModes(None, None) else str(power_modes)
            }
        ),
        notes=tuple(_notes(plan, measurement, cells, monitor)),
    )


def _notes(
    plan: Plan, measurement: Measurement, cells: Sequence[CellReport], monitor: Monitor
) -> list[str]:
    notes = [_BATCH_NOTE]
    for name, tick in monitor.ticks.items():
        if any(
            _is_short(cell, part) for cell in cells for part in cell.energy if part.sensor == name
        ):
            notes.append(
                f"{name} updates its energy every {tick:g} s: none is given for what takes less "
                f"than {ENERGY_TICKS * tick:g} s; a longer --prompt or --generated has one"
            )
    others = max((cell.others for cell in cells if cell.others is not None), default=0.0)
    if others > OTHERS_LIMIT:
        notes.append(
            f"other processes took up to {others:.0%} of the CPUs: figures are those of a busy "
            "machine"
        )
    if measurement.interrupted:
        done = sum(map(len, measurement.repeats.values()))
        wanted = plan.repeats * len(plan.cells)
        notes.append(f"interrupted: {done} of {wanted} repeats were complete")
    return notes


def _is_short(cell: CellReport, part: EnergyReport) -> bool:
    """True if a phase was too short for the sensor."""
    is_decode_short = part.joules_per_generated_token is None and cell.generated_tokens > 1
    return part.joules_per_prompt_token is None or is_decode_short


def _cell(
    model: Model,
    cell: Cell,
    repeats: Sequence[Repeat],
    monitor: Monitor,
    device_bandwidth: float | None,
) -> CellReport:
    parts = tuple(_repeat(repeat.timings) for repeat in repeats)
    prefill = spread_report(spread([part.prefill_tokens_per_second for part in parts]))
    rates = [part.decode_tokens_per_second for part in parts]
    decode = spread_report(spread([rate for rate in rates if rate is not None]))
    ttft = _percentiles([part.ttft for part in parts])
    assert prefill is not None and ttft is not None  # there is a repeat
    return CellReport(
        prompt_tokens=cell.prompt_tokens,
        generated_tokens=cell.generated_tokens,
        prefill=prefill,
        decode=decode,
        ttft=ttft,
        tpot=_percentiles([s for repeat in repeats for s in repeat.timings.measured_steps]),
        bandwidth=bandwidth_report(
            model.manifest,
            repeats[0].timings,
            decode.median if decode else None,
            device_bandwidth,
            "measured",
        ),
        others=others_share(repeats, os.cpu_count() or 1),
        peak=_peak([s for repeat in repeats for s in monitor.between(repeat.begin, repeat.end)]),
        energy=tuple(energy_reports(cell, repeats, monitor)),
        repeats=parts,
    )


def _repeat(timings: Timings) -> RepeatReport:
    steps = timings.measured_steps
    assert timings.ttft is not None  # the request is complete
    return RepeatReport(
        ttft=round(timings.ttft, _DIGITS),
        prefill=round(timings.prefill_seconds, _DIGITS),
        prefill_tokens_per_second=timings.prompt_tokens / timings.prefill_seconds,
        decode_tokens_per_second=len(steps) / sum(steps) if steps else None,
        tpot=round(statistics.median(steps), _DIGITS) if steps else None,
        steps=tuple(round(seconds, _DIGITS) for seconds in timings.steps),
        total=round(timings.total, _DIGITS),
    )


def _percentiles(seconds: list[float]) -> PercentilesReport | None:
    summary = percentiles(seconds)
    if summary is None:
        return None
    return PercentilesReport(
        p50=summary.p50, p90=summary.p90, p99=summary.p99, samples=len(seconds)
    )


def energy_reports(cell: Cell, repeats: Sequence[Repeat], monitor: Monitor) -> list[EnergyReport]:
    """Energy of a cell by sensor, for the sensors that measured it in every repeat.

    None for a phase that was over before the sensor's counter had moved often enough: its energy
    would be nothing, or that of the phase before.
    """
    parts: list[EnergyReport] = []
    prompt = cell.prompt_tokens * len(repeats)
    generated = (cell.generated_tokens - 1) * len(repeats)
    prefills = [(repeat.begin, repeat.first_token) for repeat in repeats]
    decodes = [(repeat.first_token, repeat.end) for repeat in repeats]
    for name, what in monitor.covers.items():
        phases = (prefills, decodes)
        prefill, decode = (_sum([joules(b, e, name) for b, e in phase]) for phase in phases)
        if prefill is None or decode is None:
            continue
        prefill_seconds, decode_seconds = (
            sum(end.time - begin.time for begin, end in phase) for phase in phases
        )
        is_prefill_long, is_decode_long = (
            min(e.time - b.time for b, e in phase) >= ENERGY_TICKS * monitor.ticks[name]
            for phase in phases
        )
        has_prefill = is_prefill_long and prefill_seconds > 0
        has_decode = is_decode_long and decode_seconds > 0 and generated > 0
        parts.append(
            EnergyReport(
                sensor=name,
                covers=what,
                joules_per_prompt_token=prefill / prompt if has_prefill else None,
                joules_per_generated_token=decode / generated if has_decode else None,
                prefill_watts=prefill / prefill_seconds if has_prefill else None,
                decode_watts=decode / decode_seconds if has_decode else None,
                decode_seconds=decode_seconds,
            )
        )
    return parts


def others_share(repeats: Sequence[Repeat], cpus: int) -> float | None:
    """The share of `cpus` logical CPUs that other processes took during some repeats."""
    pairs = [(repeat.begin.other_cpu, repeat.end.other_cpu) for repeat in repeats]
    taken = _sum([None if b is None or e is None else e - b for b, e in pairs])
    seconds = sum(repeat.end.time - repeat.begin.time for repeat in repeats)
    if taken is None or seconds * cpus < _LEAST_TICKED:
        return None
    # The counters tick: a process's own time may be ahead of the system's.
    return min(1.0, max(0.0, taken / (seconds * cpus)))


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _peak(samples: Sequence[Sample]) -> PeakReport:
    def most(values: list[int | None]) -> int | None:
        return max((value for value in values if value is not None), default=None)

    return PeakReport(
        anonymous=most([sample.anonymous for sample in samples]),
        file_backed=most([sample.file_backed for sample in samples]),
        device=most([sample.device for sample in samples]),
    )


def memory_samples(samples: Sequence[Sample]) -> tuple[SampleReport, ...]:
    """At most some 500 of the samples, evenly spaced, the last included."""
    step = -(-len(samples) // _MOST_SAMPLES) or 1
    kept = list(samples[::step])
    if samples and kept[-1] is not samples[-1]:
        kept.append(samples[-1])
    return tuple(
        SampleReport(
            time=round(sample.time - samples[0].time, 6),
            anonymous=sample.anonymous,
            file_backed=sample.file_backed,
            device=sample.device,
        )
        for sample in kept
    )


def clocks(samples: Sequence[Sample]) -> tuple[ClockReport, ...]:
    """Every clock that a sensor ever read, over all samples."""
    names = dict.fromkeys(name for sample in samples for name in sample.clocks)
    return tuple(
        ClockReport(
            name=name,
            before=samples[0].clocks.get(name),
            after=samples[-1].clocks.get(name),
            lowest=min(sample.clocks[name] for sample in samples if name in sample.clocks),
            highest=max(sample.clocks[name] for sample in samples if name in sample.clocks),
        )
        for name in names
    )


def throttling(samples: Sequence[Sample]) -> ThrottlingReport:
    """Reasons for reduced clocks, with the number of samples; and how much event counters grew."""
    reasons = Counter(reason for sample in samples for reason in set(sample.throttled))
    first = samples[0].throttle_counts if samples else {}
    last = samples[-1].throttle_counts if samples else {}
    return ThrottlingReport(
        samples=len(samples),
        reasons=dict(sorted(reasons.items())),
        events={name: last[name] - count for name, count in first.items() if name in last},
    )
