"""The facts of a Jetson: module, board, Jetson Linux, JetPack and its packages, power mode."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.device.system_files import read_text
from awq_edge.units import release

# Runs a program: its standard output, None where it is not there or fails.
Run = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class JetPack:
    """A release of JetPack."""

    version: str  # "6.2"
    # tensorrt, cuda: releases of its packages
    tensorrt: str
    cuda: str

    @property
    def major(self) -> int:
        return release(self.version)[0]


# NVIDIA's JetPack archive (developer.nvidia.com/embedded/jetpack-archive): packages of each; the
# third number of a version is a release of the same ones.
JETPACKS = (
    JetPack("5.0", "8.4", "11.4"),
    JetPack("5.1", "8.5", "11.4"),
    JetPack("6.0", "8.6", "12.2"),
    JetPack("6.1", "10.3", "12.6"),
    JetPack("6.2", "10.3", "12.6"),
    JetPack("7.0", "10.13", "13.0"),
    JetPack("7.1", "10.13", "13.0"),
    JetPack("7.2", "10.16", "13.2"),
)
# The first Jetson Linux of each; the releases after it, up to the next line's, are of the same one.
_JETSON_LINUX = (
    ((34, 0), "5.0"),
    ((35, 2), "5.1"),
    ((36, 0), "6.0"),
    ((36, 4), "6.1"),
    ((36, 4, 2), "6.2"),
    ((38, 0), "7.0"),
    ((38, 4), "7.1"),
    ((39, 0), "7.2"),
)
_NEWEST = 39  # of Jetson Linux: what a later one has is not known here


@dataclass(frozen=True)
class JetsonLinux:
    """A release of Jetson Linux. release: "36.4.3"."""

    release: str

    @property
    def jetpack(self) -> JetPack | None:
        """The JetPack of this release; None before or after the known ones."""
        numbers = release(self.release, None)
        if numbers[0] > _NEWEST:
            return None
        versions = [version for first, version in _JETSON_LINUX if first <= numbers]
        return jetpack_of(versions[-1]) if versions else None


def jetpack_of(version: str) -> JetPack | None:
    """The JetPack of a package's version ("6.2.1+b38"); None for an unknown one."""
    match = re.match(r"\d+\.\d+", version)
    return next((release for release in JETPACKS if match and release.version == match[0]), None)


def read_release(root: Path = Path("/")) -> JetsonLinux | None:
    """The release in /etc/nv_tegra_release ("# R36 (release), REVISION: 4.3, ..."); None where that
    file is not there or says something else."""
    text = read_text(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text or "")
    return None if match is None else JetsonLinux(f"{match[1]}.{match[2]}")


def read_package(name: str, root: Path = Path("/")) -> str | None:
    """The version of an installed Debian package ("6.2+b77"), from dpkg's records; None where it is
    not installed."""
    text = read_text(root / "var/lib/dpkg/status") or ""
    for record in text.split("\n\n"):
        if record.lstrip("\n").startswith(f"Package: {name}\n"):
            if "\nStatus: install ok installed" not in record and (
                "\nStatus: hold ok installed" not in record
            ):
                return None
            match = re.search(r"^Version: (.+)$", record, re.MULTILINE)
            return match[1] if match else None
    return None


def read_jetpack_package(root: Path = Path("/")) -> str | None:
    """The version of the package nvidia-jetpack; None where it is not installed."""
    return read_package("nvidia-jetpack", root)


def read_compatible(root: Path = Path("/")) -> tuple[str, ...]:
    """The device tree's `compatible` names of the board, its own name first; empty where there is
    no device tree, or a container hides it (Docker masks /sys/firmware)."""
    text = read_text(root / "proc/device-tree/compatible") or ""
    return tuple(name for name in text.split("\0") if name.strip())


def read_modules(root: Path = Path("/")) -> tuple[str, ...]:
    """Part numbers of the device tree's compatible names ("p3768-0000", "p3767-0005"), those of
    NVIDIA's entries first: the first entry may be a maker of carriers' own. The carrier's are among
    them; with Super or without, a module has one number."""
    entries = sorted(read_compatible(root), key=lambda entry: not entry.startswith("nvidia,"))
    part_numbers = [number for entry in entries for number in re.findall(r"p\d{4}-\d{4}", entry)]
    return tuple(dict.fromkeys(part_numbers))


def read_board(root: Path = Path("/")) -> str | None:
    """The device tree's name of the board, free text ("NVIDIA Jetson Orin Nano Developer Kit")."""
    return read_text(root / "proc/device-tree/model") or None


def is_jetson(root: Path = Path("/")) -> bool:
    """True on a Tegra with Jetson Linux, or in a container on one."""
    return read_release(root) is not None or any(
        name.startswith("nvidia,tegra") for name in read_compatible(root)
    )


def read_power_mode(run: Run) -> str | None:
    """The mode that `nvpmodel -q` names ("MAXN_SUPER"); None where it does not."""
    text = run(["nvpmodel", "-q"]) or ""
    match = re.search(r"NV Power Mode: ?(\S+)", text)
    return match[1] if match else None
