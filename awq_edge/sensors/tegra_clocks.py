"""Clocks of a Jetson's GPU and memory, and the reasons that hold them down.

    GPU       /sys/class/devfreq/17000000.gpu/cur_freq (Orin, Hz); gpu-gpc-0 and others on Thor
    memory    /sys/kernel/debug/bpmp/debug/clk/emc/rate (Hz, root alone)
    thermal   /sys/class/thermal/cooling_device*/{type,cur_state}: "cpu-throttle-alert" and the like
    current   /sys/class/hwmon/hwmon*/oc*_event_cnt: over-current events since the start

Source: NVIDIA, Jetson Linux Developer Guide, Platform Power and Performance.
"""

from __future__ import annotations

from pathlib import Path

from awq_edge.device.jetson import is_jetson
from awq_edge.device.system_files import read_int, read_text
from awq_edge.sensors.reading import Absent, Reading, SysfsSensor

NAME = "tegra"
_DEVFREQ = Path("sys/class/devfreq")
_GPU_NAMES = ("gpu", "ga10b", "gv11b", "gp10b", "gb10b")
_EMC = Path("sys/kernel/debug/bpmp/debug/clk/emc/rate")
_COOLING = Path("sys/class/thermal")
_HWMON = Path("sys/class/hwmon")


class TegraClocks(SysfsSensor):
    """GPU and memory clocks, throttle alerts that are on, over-current events."""

    name = NAME

    def __init__(
        self, clocks: dict[str, Path], alerts: dict[str, Path], events: dict[str, Path]
    ) -> None:
        self._clocks = clocks
        self._alerts = alerts
        self._events = events
        self.covers = f"the clocks of {', '.join(clocks)}"
        if alerts or events:
            self.covers += "; throttle alerts and over-current events"

    def read(self) -> Reading:
        """The kernel's figures now, without those of an engine that sleeps."""
        clocks = {name: read_int(path) for name, path in self._clocks.items()}
        events = {name: read_int(path) for name, path in self._events.items()}
        return Reading(
            clocks={name: value for name, value in clocks.items() if value is not None},
            throttled=tuple(name for name, path in self._alerts.items() if read_int(path)),
            throttle_counts={name: value for name, value in events.items() if value is not None},
        )


def find_tegra_clocks(root: Path = Path("/")) -> TegraClocks | Absent:
    """The clocks and events under root/sys of a Jetson."""
    if not is_jetson(root):
        return Absent(NAME, "not a Jetson")
    clocks: dict[str, Path] = {}
    for device in sorted((root / _DEVFREQ).glob("*")):
        label = device.name.rpartition(".")[2]
        if label.startswith(_GPU_NAMES) and read_int(device / "cur_freq") is not None:
            clocks["gpu" if label in _GPU_NAMES else label] = device / "cur_freq"
    if read_int(root / _EMC) is not None:
        clocks["memory"] = root / _EMC
    if not clocks:
        return Absent(NAME, "a Jetson, but no clock of its GPU in /sys/class/devfreq can be read")
    alerts: dict[str, Path] = {}
    for device in sorted((root / _COOLING).glob("cooling_device*")):
        kind = read_text(device / "type") or ""
        if "throttle-alert" in kind or "hot-surface-alert" in kind:
            alerts[kind] = device / "cur_state"
    events = {
        path.name.removesuffix("_event_cnt").upper() + " events": path
        for path in sorted((root / _HWMON).glob("hwmon*/oc*_event_cnt"))
    }
    return TegraClocks(clocks, alerts, events)
