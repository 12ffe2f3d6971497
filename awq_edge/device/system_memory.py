"""The system's memory: its bytes, and how many of them a program can have now.

Not all that /proc/meminfo counts as available or as swap can be had:

    page cache         counted as available, and given back to whoever asks; a driver that wants
                       pages at once may fail before it is (`cached` says how much of it there is)
    CMA                its free pages are in MemFree and MemAvailable; what a GPU pins gets none
    compressed swap    zram keeps what it takes in the same memory: none of it is counted as swap
    cgroup limits      a container, or a systemd unit, gets less of both than the machine has

Memory that other programs have pinned (huge pages, locked pages, buffers of the GPU) is not in
MemAvailable. On a Jetson GPU and CPU share this memory; a process's resident memory leaves out the
GPU's part, and cudaMemGetInfo the part that the system could still free. Sources: proc_meminfo(5),
Linux' si_mem_available and Documentation/admin-guide/{blockdev/zram,cgroup-v2}.rst; NVIDIA, "CUDA
for Tegra", Estimating Total Allocatable Device Memory on an Integrated GPU Device (allocated for
the GPU is NvMapMemUsed of /proc/meminfo, or the total of debugfs' nvmap/iovmm/clients).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from awq_edge.device.system_files import read_int, read_text

_NVMAP_CLIENTS = "sys/kernel/debug/nvmap/iovmm/clients"  # readable by root
_CGROUPS = "sys/fs/cgroup"
_UNLIMITED = 1 << 60  # version 1 of cgroups writes a number near 2 ** 63 for no limit
# Swap that is kept in memory: zram, and a disk in memory.
_IN_MEMORY = re.compile(r"/(?:zram|ram)\d+$")


@dataclass(frozen=True)
class SystemMemory:
    """Bytes of memory now.

    total, available: MemTotal and MemAvailable, within this process's cgroup.
    cached: page cache within `available`.
    swap, compressed_swap: free swap on disks, and in compressed memory.
    cma_total, cma_free: of the region for contiguous allocations, 0 where the kernel has none.
    nvmap: allocated for a Jetson's GPU and other engines by all processes, None where this kernel,
        or this user, does not see it.
    limited: the cgroup, not the machine, decides.
    installed: MemTotal, before a cgroup's limit.
    """

    total: int
    available: int
    cached: int = 0
    swap: int = 0
    compressed_swap: int = 0
    cma_total: int = 0
    cma_free: int = 0
    nvmap: int | None = None
    limited: bool = False
    installed: int = 0

    @property
    def used(self) -> int:
        """Bytes that are neither free nor could be freed."""
        return self.total - self.available

    @property
    def pinnable(self) -> int:
        """Bytes that can be pinned: a GPU's part of a shared memory."""
        return max(0, self.available - self.cma_free)

    @property
    def pageable(self) -> int:
        """Bytes by which a program's own memory can grow, part of it swapped out to a disk."""
        return self.available + self.swap


def read_system_memory(root: Path = Path("/")) -> SystemMemory | None:
    """The figures now; None where there is no /proc/meminfo. root: of the file system."""
    fields = {
        name: int(number) * 1024
        for name, number in re.findall(
            r"^([\w()]+):\s+(\d+) kB$", read_text(root / "proc/meminfo") or "", re.MULTILINE
        )
    }
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    total, available = fields["MemTotal"], fields["MemAvailable"]
    on_disk, compressed = _swaps(root, fields.get("SwapFree", 0))
    limited = False
    for limit, used, swap_left in _limits(root):
        limited |= limit < total
        total, available = min(total, limit), min(available, max(0, limit - used))
        on_disk = min(on_disk, swap_left)
    nvmap = fields.get("NvMapMemUsed")
    return SystemMemory(
        total=total,
        available=available,
        cached=min(available, fields.get("Active(file)", 0) + fields.get("Inactive(file)", 0)),
        swap=on_disk,
        compressed_swap=compressed,
        cma_total=fields.get("CmaTotal", 0),
        cma_free=fields.get("CmaFree", 0),
        nvmap=_nvmap_clients(root) if nvmap is None else nvmap,
        limited=limited,
        installed=fields["MemTotal"],
    )


def _swaps(root: Path, free: int) -> tuple[int, int]:
    """Free swap on disks and in memory, of /proc/swaps; its columns: name, type, size, used,
    priority, in kB. free: all of it, by /proc/meminfo."""
    on_disk = compressed = 0
    for line in (read_text(root / "proc/swaps") or "").splitlines()[1:]:
        words = line.split()
        if len(words) >= 5 and words[-2].isdigit() and words[-3].isdigit():
            left = (int(words[-3]) - int(words[-2])) * 1024
            if _IN_MEMORY.search(words[0]):
                compressed += left
            else:
                on_disk += left
    # A container sees the host's table and a meminfo of its own (lxcfs): the smaller one counts.
    return min(on_disk, free), min(compressed, free)


def _limits(root: Path) -> Iterator[tuple[int, int, int]]:
    """This process's cgroup and those above it: the bytes that each allows, those of them that
    cannot be freed, and the swap left."""
    for folder in _cgroup_folders(root):
        limit = read_int(folder / "memory.max")
        if limit is not None:
            used = (read_int(folder / "memory.current") or 0) - _file_cache(folder)
            most, swapped = (
                read_int(folder / "memory.swap.max"),
                read_int(folder / "memory.swap.current"),
            )
            yield limit, used, _UNLIMITED if most is None else max(0, most - (swapped or 0))
    folder = root / _CGROUPS / "memory"
    limit = read_int(folder / "memory.limit_in_bytes")
    if limit is not None and limit < _UNLIMITED:
        used = (read_int(folder / "memory.usage_in_bytes") or 0) - _file_cache(folder)
        yield limit, used, _UNLIMITED


def _cgroup_folders(root: Path) -> list[Path]:
    """The folder of this process's group (version 2) and those above it; inside a container the
    group is the root that it sees."""
    match = re.search(r"^0::(/.*)$", read_text(root / "proc/self/cgroup") or "", re.MULTILINE)
    group = PurePosixPath(match[1] if match else "/")
    base = root / _CGROUPS
    return [
        base / parent.relative_to("/")
        for parent in (group, *group.parents)
        if ".." not in parent.parts
    ]


def _file_cache(folder: Path) -> int:
    """Page cache that counts against a group and is given back before its limit is hit."""
    text = read_text(folder / "memory.stat") or ""
    return sum(int(size) for size in re.findall(r"^(?:in)?active_file (\d+)$", text, re.MULTILINE))


def _nvmap_clients(root: Path) -> int | None:
    """The line "total  740388K" of NvMap's table."""
    text = read_text(root / _NVMAP_CLIENTS) or ""
    match = re.search(r"^\s*total\s+(\d+)([KM]?)", text, re.MULTILINE)
    return None if match is None else int(match[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[match[2]]
