"""The protocol of sensors: a name, the device covered, and a reading that never fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """One sensor's figures now; empty or None where it has none."""

    energy: float | None = None  # joules since some moment, a counter that only grows
    power: float | None = None  # watts now
    clocks: Mapping[str, int] = field(default_factory=dict)  # Hz by name
    throttled: tuple[str, ...] = ()  # reasons for which clocks are held down now
    throttle_counts: Mapping[str, int] = field(default_factory=dict)  # events so far, by name
    memory_used: int | None = None  # bytes of a GPU's own memory in use, by all programs


class Sensor(Protocol):
    """One source of readings.

    name: of the source.
    covers: the device or rail of its figures, in words.
    tick: seconds between two updates of its energy counter; 0 where a reading is of the moment.
    """

    @property
    def name(self) -> str: ...

    @property
    def covers(self) -> str: ...

    @property
    def tick(self) -> float: ...

    def read(self) -> Reading:
        """The figures now, without those that cannot be read any more; raises nothing."""
        ...

    def close(self) -> None:
        """Release the sensor's handles."""
        ...


@dataclass(frozen=True)
class Absent:
    """A sensor that this machine or this user does not have, and the reason."""

    name: str
    reason: str


class SysfsSensor:
    """A sensor that reads files under /sys: it holds nothing."""

    name = ""
    covers = ""
    tick = 0.0

    def close(self) -> None:
        """Nothing is held."""
