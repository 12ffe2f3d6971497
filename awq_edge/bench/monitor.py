"""Memory and sensors over time: a thread that samples them, and samples on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from awq_edge.device.cpu import busy_seconds
from awq_edge.runtime.memory import ProcessMemory, read_process_memory
from awq_edge.sensors.reading import Reading, Sensor


@dataclass(frozen=True)
class Sample:
    """Memory and energy at one moment."""

    time: float  # seconds of the clock
    # anonymous, file_backed: bytes of this process
    anonymous: int | None = None
    file_backed: int | None = None
    device: int | None = None  # in use on the whole GPU
    other_cpu: float | None = None  # CPU seconds of all other processes since the machine started
    # joules since the monitor began, by sensor
    energy: Mapping[str, float] = field(default_factory=dict)
    clocks: Mapping[str, int] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    throttle_counts: Mapping[str, int] = field(default_factory=dict)


class Monitor:
    """Takes samples: every `interval` seconds inside `with`, and whenever `sample` is called.

    device_memory: bytes in use where GPU and CPU share the memory; None asks the sensors alone.
    """

    def __init__(
        self,
        sensors: Sequence[Sensor] = (),
        *,
        interval: float = 0.1,
        clock: Callable[[], float] = time.perf_counter,
        process_memory: Callable[[], ProcessMemory] = read_process_memory,
        device_memory: Callable[[], int | None] | None = None,
        other_cpu: Callable[[], float | None] | None = None,
    ) -> None:
        self.samples: list[Sample] = []
        self._sensors = tuple(sensors)
        self._interval = interval
        self._clock = clock
        self._process_memory = process_memory
        self._device_memory = device_memory
        self._other_cpu = _other_cpu if other_cpu is None else other_cpu
        self._meters = {sensor.name: EnergyMeter() for sensor in self._sensors}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def covers(self) -> dict[str, str]:
        """The device that each sensor covers, by the sensor's name."""
        return {sensor.name: sensor.covers for sensor in self._sensors}

    @property
    def ticks(self) -> dict[str, float]:
        """Seconds between two updates of each sensor's energy counter, by its name."""
        return {sensor.name: sensor.tick for sensor in self._sensors}

    def sample(self) -> Sample:
        """Take a sample now."""
        with self._lock:
            now, memory = self._clock(), self._process_memory()
            readings = {sensor.name: sensor.read() for sensor in self._sensors}
            device = self._device_memory() if self._device_memory is not None else None
            for reading in readings.values():
                device = reading.memory_used if device is None else device
            energy = {
                name: self._meters[name].add(now, reading) for name, reading in readings.items()
            }
            sample = Sample(
                time=now,
                anonymous=memory.anonymous,
                file_backed=memory.file_backed,
                device=device,
                other_cpu=self._other_cpu(),
                energy={name: value for name, value in energy.items() if value is not None},
                clocks={k: v for reading in readings.values() for k, v in reading.clocks.items()},
                throttled=tuple(
                    reason for reading in readings.values() for reason in reading.throttled
                ),
                throttle_counts={
                    k: v
                    for reading in readings.values()
                    for k, v in reading.throttle_counts.items()
                },
            )
            self.samples.append(sample)
            return sample

    def between(self, begin: Sample, end: Sample) -> list[Sample]:
        """The samples from one to another, both included."""
        return [sample for sample in list(self.samples) if begin.time <= sample.time <= end.time]

    def __enter__(self) -> Monitor:
        self.sample()
        self._thread = threading.Thread(target=self._run, name="bench-monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.sample()

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self.sample()


class EnergyMeter:
    """Joules of one sensor since its first reading: its counter's, or the integral of its power.

    The integral is by trapezoids; a reading without power is bridged.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._total = 0.0
        self._last: tuple[float, float] | None = None  # time, watts

    def add(self, now: float, reading: Reading) -> float | None:
        """The joules at `now`, seconds; None where this reading has neither energy nor power."""
        if reading.energy is not None:
            if self._first is None:
                self._first = reading.energy
            return reading.energy - self._first
        if reading.power is None or self._first is not None:
            return None
        if self._last is not None:
            before, watts = self._last
            self._total += (now - before) * (watts + reading.power) / 2
        self._last = (now, reading.power)
        return self._total


def _other_cpu() -> float | None:
    busy = busy_seconds()
    return None if busy is None else busy - time.process_time()


def joules(begin: Sample, end: Sample, sensor: str) -> float | None:
    """Energy between two samples; None where one of them has none of this sensor."""
    if sensor not in begin.energy or sensor not in end.energy:
        return None
    return end.energy[sensor] - begin.energy[sensor]
