"""The mode that bounds power and clocks: nvpmodel's on a Jetson, and the CPU's governor."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.device.jetson import Run, read_power_mode
from awq_edge.device.system_files import read_text
from awq_edge.process import children

_GOVERNOR = Path("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_TIMEOUT_S = 10


@dataclass(frozen=True)
class PowerModes:
    """The modes that bound power and clocks; None where one is unknown."""

    nvpmodel: str | None  # its mode's name ("15W", "MAXN")
    governor: str | None  # of the CPU's clocks

    def __str__(self) -> str:
        parts = {"nvpmodel": self.nvpmodel, "governor": self.governor}
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value) or "unknown"


def read_power_modes(root: Path = Path("/"), run: Run | None = None) -> PowerModes:
    """The modes now. run: executes a command; by default the machine's."""
    return PowerModes(read_power_mode(run or _run), read_text(root / _GOVERNOR))


def _run(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = children.run(command, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
