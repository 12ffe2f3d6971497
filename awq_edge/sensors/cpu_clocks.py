"""Clocks of the CPU's cores, and how often Linux saw them throttled.

Source: Linux, Documentation/admin-guide/pm/cpufreq.rst; arch/x86/kernel/cpu/mce/therm_throt.c.
"""

from __future__ import annotations

import re
from pathlib import Path

from awq_edge.device.system_files import read_int
from awq_edge.sensors.reading import Absent, Reading, SysfsSensor

NAME = "cpu"
_CPUS = Path("sys/devices/system/cpu")
_COUNTS = ("core_throttle_count", "package_throttle_count")


class CpuClocks(SysfsSensor):
    """Highest and lowest clock of the cores now; the throttle counts of all cores together."""

    name = NAME

    def __init__(self, clocks: list[Path], counts: dict[str, list[Path]]) -> None:
        self._clocks = clocks
        self._counts = counts
        self.covers = f"the clocks of {len(clocks)} cores"
        if any(counts.values()):
            self.covers += ", and how often they were throttled"

    def read(self) -> Reading:
        """Hz and counts; a core that was taken off line is left out."""
        clocks = [value for value in map(read_int, self._clocks) if value is not None]
        counts = {
            name.replace("_", " "): sum(v for v in map(read_int, files) if v is not None)
            for name, files in self._counts.items()
            if files
        }
        if not clocks:
            return Reading(throttle_counts=counts)
        named = {"cpu, fastest core": max(clocks) * 1000, "cpu, slowest core": min(clocks) * 1000}
        return Reading(clocks=named, throttle_counts=counts)


def find_cpu_clocks(root: Path = Path("/")) -> CpuClocks | Absent:
    """The cores under root/sys."""
    cores = [p for p in sorted((root / _CPUS).glob("cpu*")) if re.fullmatch(r"cpu\d+", p.name)]
    clocks = [core / "cpufreq" / "scaling_cur_freq" for core in cores]  # kHz
    clocks = [path for path in clocks if read_int(path) is not None]
    counts = {
        name: [
            path
            for path in (core / "thermal_throttle" / name for core in cores)
            if read_int(path) is not None
        ]
        for name in _COUNTS
    }
    if not clocks and not any(counts.values()):
        return Absent(NAME, "no cpufreq in /sys/devices/system/cpu: a virtual machine, mostly")
    return CpuClocks(clocks, counts)
