"""Samples over time, energy from power, and the thread that looks."""

from __future__ import annotations

import time

import pytest

from awq_edge.bench.build import memory_samples
from awq_edge.bench.monitor import EnergyMeter, Monitor, Sample, joules
from awq_edge.sensors.reading import Reading

from .timed import MEMORY, Clock, FakeSensor, monitor_of


def test_power_is_integrated_by_trapezoids() -> None:
    meter = EnergyMeter()
    assert meter.add(0.0, Reading(power=4.0)) == 0.0
    assert meter.add(2.0, Reading(power=8.0)) == 12.0
    assert meter.add(3.0, Reading()) is None
    assert meter.add(4.0, Reading(power=8.0)) == 12.0 + 16.0  # the gap is bridged


def test_a_counter_goes_before_power() -> None:
    meter = EnergyMeter()
    assert meter.add(0.0, Reading(energy=500.0, power=1.0)) == 0.0
    assert meter.add(9.0, Reading(energy=530.0, power=1.0)) == 30.0
    # A counter that is gone is not continued by another measure.
    assert meter.add(10.0, Reading(power=1.0)) is None


def test_energy_between_samples_needs_both() -> None:
    known, unknown = Sample(0.0, energy={"a": 2.0}), Sample(1.0)
    assert joules(known, Sample(1.0, energy={"a": 5.0}), "a") == 3.0
    assert joules(known, unknown, "a") is None
    assert joules(unknown, known, "a") is None


def test_samples_between_two() -> None:
    clock = Clock()
    monitor = monitor_of(clock)
    taken = []
    for clock.now in (0.0, 1.0, 2.0, 3.0):
        taken.append(monitor.sample())
    assert monitor.between(taken[1], taken[2]) == taken[1:3]


def test_shared_memory_goes_before_a_gpus_own() -> None:
    """A Jetson's NVML, where there is one, does not know the system's memory."""
    clock = Clock()
    sensor = FakeSensor("nvml", clock, lambda now: Reading(memory_used=5))
    assert Monitor([sensor], clock=clock).sample().device == 5
    assert Monitor([sensor], clock=clock, device_memory=lambda: 7).sample().device == 7


def test_the_thread_looks_by_itself_and_ends() -> None:
    import threading

    monitor = Monitor(interval=0.01, process_memory=lambda: MEMORY)
    with monitor:
        deadline = time.monotonic() + 30
        while len(monitor.samples) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    count = len(monitor.samples)
    assert count >= 5
    assert all(one.anonymous == MEMORY.anonymous for one in monitor.samples)
    assert "bench-monitor" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1777])
def test_reports_keep_some_500_samples_and_the_last(count: int) -> None:
    kept = memory_samples([Sample(time=float(number)) for number in range(count)])
    assert min(count, 250) <= len(kept) <= 501
    assert (kept[0].time, kept[-1].time) == (0.0, count - 1)
