"""What is measured on a session of known speed: every figure of the report exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.bench.measure import measure
from awq_edge.bench.plan import Cell, Plan
from awq_edge.bench.report import BenchReport
from awq_edge.runtime.memory import kv_cache_bytes
from awq_edge.sensors.reading import Absent, Reading

from .timed import OTHERS, Clock, FakeSensor, TimedSession, monitor_of, report_of

# Binary fractions: sums of them are exact.
WARMUP_STEP, STEPS = 2.0, (0.5, 0.25, 0.5)


def test_prefill_decode_and_latency_are_exact(tiny_bundle: Path) -> None:
    """Six tokens are five steps: two that warm up, three that count."""
    clock = Clock()
    session = TimedSession(clock, per_token=0.25, steps=(WARMUP_STEP, WARMUP_STEP, *STEPS))
    report = report_of(tiny_bundle, clock=clock, session=session)
    short, long = report.cells
    for cell, prompt in ((short, 4), (long, 16)):
        assert (cell.prompt_tokens, cell.generated_tokens, cell.batch) == (prompt, 6, 1)
        assert (cell.prefill.median, cell.prefill.p10, cell.prefill.samples) == (4.0, 4.0, 5)
        assert cell.ttft.p50 == cell.ttft.p99 == prompt * 0.25
        assert cell.decode is not None and cell.tpot is not None
        assert cell.decode.median == pytest.approx(3 / 1.25)
        assert cell.tpot.samples == 5 * 3
        p50, p90, p99 = np.percentile(STEPS * 5, [50, 90, 99])
        assert (cell.tpot.p50, cell.tpot.p90, cell.tpot.p99) == (p50, p90, p99)
        for repeat in cell.repeats:
            assert repeat.steps == (WARMUP_STEP, WARMUP_STEP, *STEPS)
            assert repeat.tpot == 0.5
            assert repeat.total == prompt * 0.25 + 2 * WARMUP_STEP + sum(STEPS)
    assert report.load == 2.0


def test_spread_is_that_of_the_repeats(tiny_bundle: Path) -> None:
    """A session that grows slower: one value a repeat, percentiles between them."""
    clock = Clock()
    steps = [seconds for seconds in (9.0, 1.0, 2.0, 4.0) for _ in range(3)]
    plan = Plan((Cell(4, 4),), warmup=1, repeats=3)
    session = TimedSession(clock, steps=steps)
    (cell,) = report_of(tiny_bundle, clock=clock, session=session, plan=plan).cells
    rates = [1.0, 0.5, 0.25]  # the round at 9 seconds a step warmed up
    assert [repeat.decode_tokens_per_second for repeat in cell.repeats] == rates
    assert cell.decode is not None
    assert cell.decode.median == 0.5
    assert cell.decode.p10 == pytest.approx(np.percentile(rates, 10))
    assert cell.decode.p90 == pytest.approx(np.percentile(rates, 90))


def test_roofline_arithmetic(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    clock = Clock()
    session = TimedSession(clock, steps=(0.5,))
    plan = Plan((Cell(16, 6),), warmup=0, repeats=2)
    (cell,) = report_of(tiny_bundle, clock=clock, session=session, plan=plan, bandwidth=8e6).cells
    # Steps read 17 to 21 positions; the three that count 19 to 21: 20 in the mean.
    kv = kv_cache_bytes(manifest, 20)
    total = manifest.bytes_per_token + kv
    bandwidth = cell.bandwidth
    assert bandwidth.kv_bytes_per_token == kv
    assert bandwidth.achieved_bytes_per_second == total * 2.0
    assert bandwidth.roofline_tokens_per_second == 8e6 / total
    assert bandwidth.share_of_device == pytest.approx(total * 2.0 / 8e6)
    unknown = report_of(tiny_bundle, bandwidth=None).cells[0].bandwidth
    assert unknown.share_of_device is None and unknown.roofline_tokens_per_second is None
    assert unknown.device_source is None


def test_a_single_token_has_no_decode(tiny_bundle: Path) -> None:
    (cell,) = report_of(tiny_bundle, plan=Plan((Cell(4, 1),), repeats=2)).cells
    assert cell.decode is None and cell.tpot is None
    assert cell.repeats[0].steps == ()
    assert cell.bandwidth.achieved_bytes_per_second is None


def test_rounds_take_every_cell_and_start_from_an_empty_cache() -> None:
    clock = Clock()
    session = TimedSession(clock)
    plan = Plan((Cell(2, 2), Cell(3, 2)), warmup=1, repeats=2)
    measurement = measure(session, plan, [7, 8, 9], monitor_of(clock), clock=clock)
    prompts = [call[1] for call in session.executed() if call[0] == "prefill"]
    assert prompts == [[7, 8], [7, 8, 9]] * 3
    assert not measurement.interrupted
    assert [len(repeats) for repeats in measurement.repeats.values()] == [2, 2]


def test_eos_does_not_end_a_request(tiny_bundle: Path) -> None:
    (eos,) = Bundle.open(tiny_bundle).manifest.eos_token_ids
    clock = Clock()
    report = report_of(tiny_bundle, clock=clock, session=TimedSession(clock, answer=eos))
    assert all(len(repeat.steps) == 5 for cell in report.cells for repeat in cell.repeats)


def test_an_interruption_keeps_what_is_complete(tiny_bundle: Path) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 40

    report = report_of(tiny_bundle, cancelled=cancelled)
    assert report.interrupted
    counts = [len(cell.repeats) for cell in report.cells]
    # Requests ask 6 and 7 times: 26 in the first two rounds, 6 and 7 in the third, then 1.
    assert counts == [2, 2]
    assert report.notes[-1] == "interrupted: 4 of 10 repeats were complete"
    assert all(len(repeat.steps) == 5 for cell in report.cells for repeat in cell.repeats)


def test_an_interruption_before_anything_is_complete(tiny_bundle: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        report_of(tiny_bundle, cancelled=lambda: True)


def sensors_report(bundle: Path) -> BenchReport:
    clock = Clock()
    power = FakeSensor("power", clock, lambda now: Reading(power=10.0))
    counter = FakeSensor("counter", clock, lambda now: Reading(energy=100 + 2 * now))
    clocks = FakeSensor(
        "clocks",
        clock,
        lambda now: Reading(
            clocks={"gpu": 1_000 - int(now)},
            throttled=("hot",) if now > 10 else (),
            throttle_counts={"events": 5 + int(now > 10)},
            memory_used=1000 + int(now),
        ),
    )
    return report_of(
        bundle,
        clock=clock,
        session=TimedSession(clock, per_token=0.25, steps=(0.5,)),
        monitor=monitor_of(clock, power, counter, clocks),
        plan=Plan((Cell(4, 6),), warmup=0, repeats=4),
        absent=[Absent("rapl", "not this CPU")],
    )


def test_energy_per_token(tiny_bundle: Path) -> None:
    """A prompt token takes 0.25 s, a generated one 0.5 s; 10 W from one sensor, 2 W of the other's
    counter. A sensor without power has no energy."""
    (cell,) = sensors_report(tiny_bundle).cells
    power, counter = cell.energy
    assert (power.sensor, power.covers) == ("power", "all of power")
    assert power.joules_per_prompt_token == pytest.approx(2.5)
    assert power.joules_per_generated_token == pytest.approx(5.0)
    assert (power.prefill_watts, power.decode_watts) == (
        pytest.approx(10.0),
        pytest.approx(10.0),
    )
    assert power.decode_seconds == pytest.approx(4 * 5 * 0.5)
    assert counter.joules_per_generated_token == pytest.approx(1.0)


def test_a_phase_that_a_counter_cannot_see_has_no_energy(tiny_bundle: Path) -> None:
    """Four prompt tokens take 1 s, five generated ones 2.5 s; the counter moves every 0.4 s."""
    clock = Clock()
    counter = FakeSensor("counter", clock, lambda now: Reading(energy=2 * (now // 0.4)), tick=0.4)
    report = report_of(
        tiny_bundle,
        clock=clock,
        session=TimedSession(clock, per_token=0.25, steps=(0.5,)),
        monitor=monitor_of(clock, counter),
        plan=Plan((Cell(4, 6),), warmup=0, repeats=4),
    )
    (part,) = report.cells[0].energy
    assert part.joules_per_prompt_token is None and part.prefill_watts is None
    assert part.decode_watts == pytest.approx(2 / 0.4, rel=0.2)
    assert any("counter updates its energy every 0.4 s" in note for note in report.notes)
    assert not any("updates its energy" in note for note in sensors_report(tiny_bundle).notes)


def test_clocks_throttling_memory_and_load(tiny_bundle: Path) -> None:
    report = sensors_report(tiny_bundle)
    (clock,) = report.clocks
    # 4 * 3.5 seconds in all.
    assert (clock.before, clock.after, clock.lowest, clock.highest) == (1000, 986, 986, 1000)
    throttling = report.throttling
    assert throttling.seen
    assert throttling.events == {"events": 1}
    assert 0 < throttling.reasons["hot"] < throttling.samples
    (cell,) = report.cells
    assert (cell.peak.anonymous, cell.peak.file_backed, cell.peak.device) == (214, 100, 1014)
    assert report.memory_samples[0].time == 0 and report.memory_samples[-1].time == 14.0
    assert cell.others == pytest.approx(OTHERS)
    assert any(note.startswith("other processes took") for note in report.notes)
    assert [(one.name, one.absent) for one in report.sensors][-1] == ("rapl", "not this CPU")
    assert (report.nvpmodel, report.governor) == ("15W", "schedutil")
    assert report.environment.power_mode == "nvpmodel 15W, governor schedutil"


def test_round_trip(tiny_bundle: Path) -> None:
    report = sensors_report(tiny_bundle)
    assert BenchReport.model_validate_json(report.model_dump_json()) == report
