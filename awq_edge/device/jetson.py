"""Which Jetson this is: board, Jetson Linux, JetPack, power mode."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Runs a program: its standard output, None where it is not there or fails.
Run = Callable[[Sequence[str]], str | None]
# The major version of JetPack by that of Jetson Linux (docs.nvidia.com/jetson).
_JETPACK = {35: 5, 36: 6, 38: 7, 39: 7}


@dataclass(frozen=True)
class JetsonLinux:
    """release: "36.4.3". jetpack: the major version that belongs to it, None for one not known."""

    release: str
    jetpack: int | None


def read_release(root: Path = Path("/")) -> JetsonLinux | None:
    """From /etc/nv_tegra_release ("# R36 (release), REVISION: 4.3, ..."); None where that file is
    not there or says something else."""
    text = _read(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text or "")
    if match is None:
        return None
    return JetsonLinux(f"{match[1]}.{match[2]}", _JETPACK.get(int(match[1])))


def read_jetpack_package(root: Path = Path("/")) -> str | None:
    """The version of the package nvidia-jetpack ("6.2+b77"), from dpkg's records; None where it is
    not installed."""
    text = _read(root / "var/lib/dpkg/status") or ""
    for record in text.split("\n\n"):
        if record.startswith("Package: nvidia-jetpack\n"):
            if "\nStatus: install ok installed" not in record:
                return None
            match = re.search(r"^Version: (.+)$", record, re.MULTILINE)
            return match[1] if match else None
    return None


def read_board(root: Path = Path("/")) -> str | None:
    """The device tree's name of the board ("NVIDIA Jetson Orin Nano Developer Kit")."""
    text = _read(root / "proc/device-tree/model")
    return text.strip("\0\n ") if text else None


def read_power_mode(run: Run) -> str | None:
    """The mode that `nvpmodel -q` names ("MAXN_SUPER"); None where it does not."""
    text = run(["nvpmodel", "-q"]) or ""
    match = re.search(r"NV Power Mode: ?(\S+)", text)
    return match[1] if match else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
