"""Figures of a run from what was timed."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from awq_edge.runtime.metrics import WARMUP_STEPS, Timings, spread


def test_tpot_leaves_out_the_warm_up() -> None:
    steps = [9.0] * WARMUP_STEPS + [float(n) for n in range(1, 101)]
    timings = Timings(steps=steps)
    assert timings.measured_steps == steps[WARMUP_STEPS:]
    assert timings.tpot is not None
    assert timings.tpot.p50 == statistics.median(range(1, 101))
    assert timings.tpot.p95 == pytest.approx(95.05)  # linear between neighbours, as NumPy's
    assert timings.tpot.p99 == pytest.approx(99.01)


def test_decode_rate_is_of_single_steps() -> None:
    timings = Timings(steps=[1.0] * WARMUP_STEPS + [0.1, 0.2, 0.5])
    rate = timings.decode_tokens_per_second
    assert rate is not None
    assert (rate.median, rate.count) == (pytest.approx(5.0), 3)
    assert rate.p10 == pytest.approx(np.percentile([10.0, 5.0, 2.0], 10))
    assert rate.p90 == pytest.approx(np.percentile([10.0, 5.0, 2.0], 90))


def test_few_steps_are_better_than_none() -> None:
    timings = Timings(steps=[0.5] * WARMUP_STEPS)
    assert timings.decode_tokens_per_second is not None
    assert timings.decode_tokens_per_second.median == 2.0


@pytest.mark.parametrize(
    ("chunks", "median", "count"),
    [
        ([(100, 2.0)], 50.0, 1),
        ([(100, 2.0), (100, 1.0)], 75.0, 2),
        ([(100, 9.0), (100, 1.0), (100, 1.0)], 100.0, 2),  # the first is the warm-up
        ([(100, 1.0), (3, 1.0)], 100.0, 1),  # a rest of three tokens says nothing of prefill
    ],
)
def test_prefill_rate_is_of_full_chunks(
    chunks: list[tuple[int, float]], median: float, count: int
) -> None:
    timings = Timings(chunks=chunks)
    rate = timings.prefill_tokens_per_second
    assert rate is not None
    assert (rate.median, rate.count) == (median, count)
    assert timings.prefill_seconds == sum(seconds for _, seconds in chunks)


def test_nothing_measured_is_none_and_not_zero() -> None:
    timings = Timings()
    assert timings.tpot is None
    assert timings.decode_tokens_per_second is None
    assert timings.prefill_tokens_per_second is None
    assert spread([]) is None
