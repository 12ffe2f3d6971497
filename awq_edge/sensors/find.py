"""All sensors of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge.sensors.cpu_clocks import find_cpu_clocks
from awq_edge.sensors.ina3221 import find_ina3221
from awq_edge.sensors.nvml import find_nvml
from awq_edge.sensors.rapl import find_rapl
from awq_edge.sensors.reading import Absent, Sensor
from awq_edge.sensors.tegra_clocks import find_tegra_clocks


@dataclass(frozen=True)
class Sensors:
    """The sensors of a machine, and the absent ones with their reasons."""

    present: tuple[Sensor, ...] = ()
    absent: tuple[Absent, ...] = ()

    def close(self) -> None:
        """Close every sensor."""
        for sensor in self.present:
            sensor.close()


def find_sensors(root: Path = Path("/"), *, nvml: Any = None) -> Sensors:
    """The sensors of this machine.

    root: of /sys.
    nvml: a library in place of the driver's.
    """
    results: list[Sensor | Absent] = [
        _find_gpu(nvml),
        find_ina3221(root),
        find_rapl(root),
        find_tegra_clocks(root),
        find_cpu_clocks(root),
    ]
    return Sensors(
        present=tuple(result for result in results if not isinstance(result, Absent)),
        absent=tuple(result for result in results if isinstance(result, Absent)),
    )


def _find_gpu(nvml: Any) -> Sensor | Absent:
    """The sensor of the GPU that CUDA calls 0."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    if first and not first.isdigit():
        # The driver's first GPU may be another one, whose energy this would be.
        return Absent("nvml", f"CUDA_VISIBLE_DEVICES is {first}; give a number instead")
    return find_nvml(int(first or 0), nvml)
