"""Memory of a Jetson, which GPU and CPU share: what the system and NvMap say of it.

A process's resident memory leaves out what the GPU has of it, and cudaMemGetInfo what the system
could still free; /proc/meminfo counts both. NVIDIA, "CUDA for Tegra", Estimating Total Allocatable
Device Memory on an Integrated GPU Device: allocated for the GPU is NvMapMemUsed of /proc/meminfo,
or the total of debugfs' nvmap/iovmm/clients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_NVMAP_CLIENTS = Path("/sys/kernel/debug/nvmap/iovmm/clients")  # readable by root


@dataclass(frozen=True)
class TegraMemory:
    """Bytes. total, available: of the whole system. nvmap: allocated for the GPU and the other
    engines, by all processes. cma_free: of the region for contiguous allocations. None where this
    kernel, or this user, does not see it."""

    total: int
    available: int
    nvmap: int | None
    cma_free: int | None

    @property
    def used(self) -> int:
        """What is neither free nor could be freed."""
        return self.total - self.available


def read_tegra_memory(
    meminfo: Path = _MEMINFO, nvmap_clients: Path = _NVMAP_CLIENTS
) -> TegraMemory | None:
    """The figures now; None where there is no /proc/meminfo."""
    try:
        text = meminfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = {
        name: int(number) * 1024
        for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    }
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    nvmap = fields.get("NvMapMemUsed")
    return TegraMemory(
        total=fields["MemTotal"],
        available=fields["MemAvailable"],
        nvmap=_clients_total(nvmap_clients) if nvmap is None else nvmap,
        cma_free=fields.get("CmaFree"),
    )


def _clients_total(path: Path) -> int | None:
    """The line "total  740388K" of NvMap's table."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(r"^\s*total\s+(\d+)([KM]?)", text, re.MULTILINE)
    if match is None:
        return None
    return int(match[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[match[2]]
