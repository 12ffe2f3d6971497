"""Memory and disk."""

from __future__ import annotations

from collections.abc import Iterator

from awq_edge.builder.memory import read_system_memory
from awq_edge.device.tegra import read_tegra_memory
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.report import DoctorRow
from awq_edge.recipe import Recipe

_LITTLE_DISK = 10_000_000_000  # a 7 B model's bundle and the checkpoint that it is made of: 8 GB
_MEMINFO = "proc/meminfo"
_MAKE_SWAP = (
    "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
    "sudo swapon /swapfile"
)


def total_memory(machine: Machine) -> int:
    """Bytes of /proc/meminfo's MemTotal; 0 where there is none."""
    memory = read_tegra_memory(machine.root / _MEMINFO)
    return 0 if memory is None else memory.total


def memory(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """What is free now, and on a Jetson what the recipe expects to be left for a model."""
    found = read_tegra_memory(machine.root / _MEMINFO)
    system = read_system_memory(machine.root / _MEMINFO)
    if found is None or system is None:
        yield DoctorRow(check="memory", status="optional", found="the system does not tell")
        return
    words = f"{_gigabytes(found.available)} of {_gigabytes(found.total)} available"
    expected = recipe.device.usable_memory_bytes
    is_short = recipe.device.unified_memory and expected is not None and found.available < expected
    if recipe.device.kind == "jetson" and is_short and expected is not None:
        yield DoctorRow(
            check="memory",
            status="warning",
            found=f"{words}; the recipe expects {_gigabytes(expected)} for a model",
            needed_for="build, run",
            fix="sudo systemctl isolate multi-user.target  # stops the desktop",
        )
    else:
        yield DoctorRow(check="memory", status="ok", found=words)
    if recipe.device.kind == "jetson":
        yield _swap(system.swap_free, found.total)
    if system.cma_total:
        low = system.cma_free < system.cma_total // 2
        yield DoctorRow(
            check="CMA",
            status="warning" if low else "ok",
            found=f"{_megabytes(system.cma_free)} of {_megabytes(system.cma_total)} free",
            needed_for="build, run" if low else "",
            fix="close what uses the camera or the video decoder" if low else "",
        )
    if found.nvmap is not None:
        used = f"{_megabytes(found.nvmap)} allocated for the GPU and other engines"
        yield DoctorRow(check="NvMap", status="ok", found=used)


def _swap(free: int, total: int) -> DoctorRow:
    """Building an engine takes more than the board has; half of it may be swapped out."""
    little = free < total // 2
    return DoctorRow(
        check="swap",
        status="warning" if little else "ok",
        found=f"{_gigabytes(free)} free",
        needed_for="build" if little else "",
        fix=_MAKE_SWAP if little else "",
    )


def disk(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """Of the current folder and of the cache."""
    for what, path in (("disk, this folder", machine.folder), ("disk, cache", machine.cache)):
        free = machine.free_disk(path)
        little = free < _LITTLE_DISK
        yield DoctorRow(
            check=what,
            status="warning" if little else "ok",
            found=f"{_gigabytes(free)} free in {path}",
            needed_for="quantize, export, build" if little else "",
            fix=("--out DIRECTORY on another disk" if path == machine.folder else
                 "AWQ_EDGE_CACHE=DIRECTORY on another disk") if little else "",
        )  # fmt: skip


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
