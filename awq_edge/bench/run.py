"""`awq-edge bench` as a call: load a bundle, measure it, report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from awq_edge.bench.build import build_bench_report
from awq_edge.bench.measure import measure
from awq_edge.bench.monitor import Monitor
from awq_edge.bench.plan import (
    REPEATS,
    SAMPLE_INTERVAL,
    SEED,
    WARMUP,
    Plan,
    check_numbers,
    ids_sha256,
    make_plan,
    prompt_ids,
)
from awq_edge.bench.report import BenchReport
from awq_edge.device.system_memory import read_system_memory
from awq_edge.runtime.memory import read_process_memory
from awq_edge.runtime.model import Model, load
from awq_edge.sensors.find import Sensors, find_sensors
from awq_edge.sensors.power_mode import read_power_modes

_JETSON_SENSORS = {"ina3221", "tegra"}


def bench(
    bundle: str | Path,
    *,
    prompt_lengths: Sequence[int] | None = None,
    generated_lengths: Sequence[int] | None = None,
    warmup: int = WARMUP,
    repeats: int = REPEATS,
    seed: int = SEED,
    sample_interval: float = SAMPLE_INTERVAL,
    context: int | None = None,
    threads: int | None = None,
    cancelled: Callable[[], bool] | None = None,
    observer: Callable[[int, int, str], None] | None = None,
    build_observer: Callable[[float, str], None] | None = None,
    sensors: Sensors | None = None,
) -> BenchReport:
    """Load a bundle, measure prefill and decode at every pair of lengths, and report.

    prompt_lengths, generated_lengths: tokens; None takes the defaults that fit the context.
    context, threads, build_observer: see `load`.
    cancelled, observer: see `measure`.
    sensors: instead of this machine's.
    Raises the errors of `load`, and ConfigError for lengths that do not fit.
    """
    check_numbers(warmup, repeats, seed, sample_interval)
    sensors = find_sensors() if sensors is None else sensors
    monitor = _monitor(sensors, sample_interval)
    with contextlib.ExitStack() as stack:
        stack.callback(sensors.close)
        # Loading is in the memory over time, and clocks are first looked at when all is idle.
        watching = stack.enter_context(contextlib.ExitStack())
        watching.enter_context(monitor)
        model = stack.enter_context(
            load(bundle, context=context, threads=threads, observer=build_observer)
        )
        session = model.session
        plan = make_plan(
            session.context,
            prompt_lengths=prompt_lengths,
            generated_lengths=generated_lengths,
            warmup=warmup,
            repeats=repeats,
            seed=seed,
            sample_interval=sample_interval,
        )
        prompt = _longest_prompt(model, plan)
        measurement = measure(
            session, plan, prompt, monitor, cancelled=cancelled, observer=observer
        )
        watching.close()
        after = read_process_memory()
        # Measured behind the run: its buffers must not count as the run's memory.
        bandwidth = session.measure_bandwidth()
        return build_bench_report(
            model,
            plan,
            measurement,
            monitor,
            prompt_sha256=ids_sha256(prompt),
            after=after,
            device_bandwidth=bandwidth,
            absent=sensors.absent,
            power_modes=read_power_modes(),
        )


def _monitor(sensors: Sensors, interval: float) -> Monitor:
    """A monitor of these sensors; on a Jetson, the GPU's memory is the system's."""
    is_jetson = bool(_JETSON_SENSORS & {sensor.name for sensor in sensors.present})
    device_memory = _system_memory if is_jetson else None
    return Monitor(sensors.present, interval=interval, device_memory=device_memory)


def _longest_prompt(model: Model, plan: Plan) -> list[int]:
    longest = max(cell.prompt_tokens for cell in plan.cells)
    special = model.tokenizer.special_ids() | model.stop_token_ids
    return prompt_ids(model.session.vocab_size, special, longest, plan.seed)


def _system_memory() -> int | None:
    memory = read_system_memory()
    return None if memory is None else memory.used
