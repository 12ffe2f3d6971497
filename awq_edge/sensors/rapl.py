"""Intel's and AMD's energy counters of the CPU packages, through Linux's powercap.

Since Linux 5.10 the files are readable by root alone (CVE-2020-8694).
Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from awq_edge.device.system_files import read_int, read_text
from awq_edge.sensors.reading import Absent, Reading, SysfsSensor

NAME = "rapl"
_POWERCAP = Path("sys/class/powercap")


@dataclass
class _Package:
    """A counter in microjoules that wraps at `limit`. total: without the wraps."""

    file: Path
    limit: int
    last: int
    total: int = 0


class RaplSensor(SysfsSensor):
    """Energy of all CPU packages since it was found."""

    name = NAME
    tick = 1e-3  # Intel's manual, volume 3, on RAPL: "updated ~1 msec"

    def __init__(self, packages: list[_Package], names: list[str]) -> None:
        self._packages = packages
        self.covers = f"the CPU packages ({', '.join(names)}), without memory"

    def read(self) -> Reading:
        """Joules; None where a counter cannot be read any more."""
        for package in self._packages:
            now = read_int(package.file)
            if now is None:
                return Reading()
            step = now - package.last
            # Read at least once a minute, a counter starts again at most once between.
            package.total += step if step >= 0 else step + package.limit
            package.last = now
        return Reading(energy=sum(package.total for package in self._packages) / 1e6)


def find_rapl(root: Path = Path("/")) -> RaplSensor | Absent:
    """The packages under root/sys: zones "intel-rapl:N", not their parts "intel-rapl:N:M"."""
    zones = [path for path in sorted((root / _POWERCAP).glob("intel-rapl:*"))]
    zones = [path for path in zones if path.name.count(":") == 1]
    zones = [path for path in zones if (read_text(path / "name") or "").startswith("package")]
    if not zones:
        return Absent(NAME, "no /sys/class/powercap/intel-rapl:*: not this CPU, or a virtual one")
    packages: list[_Package] = []
    for zone in zones:
        file = zone / "energy_uj"
        now = read_int(file)
        if now is None:
            return Absent(NAME, f"/{file.relative_to(root)} cannot be read: root alone may")
        packages.append(_Package(file, (read_int(zone / "max_energy_range_uj") or 0) + 1, now))
    return RaplSensor(packages, [read_text(zone / "name") or zone.name for zone in zones])
