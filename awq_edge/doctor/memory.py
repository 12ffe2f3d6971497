"""Memory and disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from awq_edge.device.system_memory import SystemMemory, read_system_memory
from awq_edge.doctor import fixes
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.report import DoctorRow
from awq_edge.doctor.setting import in_container, on_jetson, wsl
from awq_edge.recipe.recipes import Recipe
from awq_edge.units import size_text

_LITTLE_DISK = 10_000_000_000  # a 7 B model's bundle and the checkpoint that it is made of: 8 GB
_SPARE_DISK = 2_000_000_000  # that a new swap file leaves
_GIB = 1 << 30


def installed_memory(machine: Machine) -> int:
    """Bytes that the system has, before a container's limit; 0 where it does not tell."""
    memory = read_system_memory(machine.root)
    return 0 if memory is None else memory.installed


def memory(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """The available memory, and on a Jetson the memory that the recipe expects for a model."""
    system = read_system_memory(machine.root)
    if system is None:
        yield DoctorRow(check="memory", status="optional", found="the system does not tell")
        return
    is_jetson = recipe.device.kind == "jetson" and on_jetson(machine)
    free = system.pinnable if is_jetson else system.available
    words = f"{size_text(free)} of {size_text(system.total)} available"
    words += ", as this container's limit has it" if system.limited else ""
    expected = recipe.device.usable_memory_bytes
    if expected is not None:  # of a module with less than the recipe's
        expected = min(expected, max(0, system.installed - recipe.device.system_reserved_bytes))
    if is_jetson and expected is not None and free < expected:
        yield DoctorRow(
            check="memory",
            status="warning",
            found=f"{words}; the recipe expects {size_text(expected)} for a model",
            needed_for="build, run",
            fix=_free_memory(machine, system),
        )
    elif is_jetson and expected is not None and free - system.cached < expected:
        yield DoctorRow(
            check="memory",
            status="ok",
            found=f"{words}, {size_text(system.cached)} of it page cache: if an allocation for "
            f"the GPU fails, {fixes.on_host(machine, 'sysctl vm.drop_caches=1')}",
        )
    else:
        yield DoctorRow(check="memory", status="ok", found=words)
    if is_jetson:
        yield _swap(machine, system)
    if system.cma_total:
        # The page cache borrows what nothing allocates: that little is free is no fault.
        free_text, total_text = size_text(system.cma_free), size_text(system.cma_total)
        found = f"{free_text} of {total_text} free, the page cache may have the rest"
        yield DoctorRow(check="CMA", status="ok", found=found)
    if system.nvmap is not None:
        used = f"{size_text(system.nvmap)} allocated for the GPU and other engines"
        yield DoctorRow(check="NvMap", status="ok", found=used)


def _free_memory(machine: Machine, system: SystemMemory) -> str:
    """The programs that hold the memory, as far as they can be seen."""
    if system.limited:
        return "give the container more: docker run --memory, or none of that flag"
    desktop = (machine.run(["systemctl", "is-active", "display-manager.service"]) or "").strip()
    if desktop == "active":
        return fixes.as_root(machine, "systemctl isolate multi-user.target") + "  # the desktop"
    if system.compressed_swap:
        stop = fixes.on_host(machine, "systemctl disable --now nvzramconfig")
        return f"{stop}  # swap in compressed memory; and close other programs"
    return "close other programs: `ps aux --sort=-rss | head` shows the largest"


def _swap(machine: Machine, system: SystemMemory) -> DoctorRow:
    """Swap: building an engine takes more than the board has; half of it may be swapped out to a
    disk."""
    wanted = system.total // 2
    little = system.swap < wanted
    words = f"{size_text(system.swap)} free"
    if system.compressed_swap:
        words += f" on disks; {size_text(system.compressed_swap)} in compressed memory do not count"
    return DoctorRow(
        check="swap",
        status="warning" if little else "ok",
        found=words,
        needed_for="build" if little else "",
        fix=_make_swap(machine, system, wanted) if little else "",
    )


def _make_swap(machine: Machine, system: SystemMemory, wanted: int) -> str:
    """A swap file for the missing bytes, as large as the disk allows, that replaces none."""
    if in_container(machine):
        return "on the container's host: `awq-edge doctor` there has the command, by its disk"
    missing = -(-(wanted - system.swap) // _GIB)
    room = int((machine.free_disk(machine.root) - _SPARE_DISK) // _GIB)
    if room < missing:
        return f"free {missing - room} GiB of the system's disk for a swap file of {missing} GiB"
    names = ("/swapfile", "/swapfile-awq-edge", "/swapfile-awq-edge-2")
    name = next((n for n in names if not (machine.root / n.lstrip("/")).exists()), names[-1])
    stop = ("systemctl disable --now nvzramconfig",) if system.compressed_swap else ()
    make = (f"fallocate -l {missing}G {name}", f"chmod 600 {name}", f"mkswap {name}")
    return fixes.as_root(machine, *stop, *make, f"swapon {name}")


def disk(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """Free space of the current folder's disk and of the cache's."""
    for what, path in (("disk, this folder", machine.folder), ("disk, cache", machine.cache)):
        free = machine.free_disk(path)
        little = free < _LITTLE_DISK
        yield DoctorRow(
            check=what,
            status="warning" if little else "ok",
            found=f"{size_text(free)} free in {path}",
            needed_for="quantize, export, build" if little else "",
            fix=_more_disk(machine, path) if little else "",
        )


def _more_disk(machine: Machine, path: Path) -> str:
    if path != machine.folder:
        return "export AWQ_EDGE_CACHE=DIRECTORY  # on another disk"
    if wsl(machine) is not None:
        return "--out DIRECTORY on another disk of Linux's: /mnt/c is slow"
    return "--out DIRECTORY on another disk"
