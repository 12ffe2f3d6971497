"""The mode that bounds power and clocks: nvpmodel's on a Jetson, and the CPU's governor."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.sensors.reading import read_text

_GOVERNOR = Path("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_TIMEOUT_S = 10
# A command's standard output; None where it is not there or fails.
Run = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class PowerModes:
    """nvpmodel: its mode's name ("15W", "MAXN"). governor: of the CPU's clocks. None: not told."""

    nvpmodel: str | None
    governor: str | None

    def __str__(self) -> str:
        parts = {"nvpmodel": self.nvpmodel, "governor": self.governor}
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value) or "unknown"


def read_power_modes(root: Path = Path("/"), run: Run | None = None) -> PowerModes:
    """The modes now. run: executes a command; by default the machine's."""
    text = (run or _run)(("nvpmodel", "-q")) or ""
    # "NV Power Mode: 15W", then its number on a line of its own.
    match = re.search(r"NV Power Mode:\s*(\S+)", text)
    return PowerModes(match[1] if match else None, read_text(root / _GOVERNOR))


def _run(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
