"""The CPU: its name, the cores this process may use, memory, power mode, and read bandwidth.

Linux answers everything; elsewhere unknown facts are None.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from awq_edge.device.system_files import read_text
from awq_edge.device.system_memory import read_system_memory

_SYS_CPU = Path("/sys/devices/system/cpu")
_STAT = Path("/proc/stat")
# Bytes that a bandwidth measurement reads per pass, at least: past the last-level cache.
_BANDWIDTH_BYTES = 128 << 20
_BANDWIDTH_PASSES = 5


@dataclass(frozen=True)
class CpuInfo:
    """The CPU that this process runs on."""

    name: str
    architecture: str
    cores: int  # physical cores this process may use
    threads: int  # logical ones
    memory_bytes: int | None  # bytes this process may use, a container's limit included
    power_mode: str | None  # the frequency governor


def describe_cpu() -> CpuInfo:
    """The CPU that this process runs on."""
    logical, memory = _allowed_cpus(), read_system_memory()
    return CpuInfo(
        name=_cpu_name(),
        architecture=platform.machine(),
        cores=_physical_cores(logical),
        threads=len(logical),
        memory_bytes=None if memory is None else memory.total,
        power_mode=read_text(_SYS_CPU / "cpu0/cpufreq/scaling_governor"),
    )


def busy_seconds(stat: Path = _STAT) -> float | None:
    """CPU seconds of all processes since the machine started; None where the system does not tell.

    Source: proc(5), /proc/stat.
    """
    try:
        fields = stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def measure_read_bandwidth(threads: int) -> float:
    """Bytes/s that `threads` threads read from memory together; the best of a few passes.

    Decoding streams every weight once per token, so this is its roofline. Takes about 0.2 s and at
    least 128 MiB, in parts that together exceed the last-level cache four times.
    """
    size = max(_BANDWIDTH_BYTES, 4 * _last_level_cache())
    # int32 maxima are vectorised and wait for nothing but memory.
    pieces = [np.ones(size // threads // 4, dtype=np.int32) for _ in range(threads)]
    best = 0.0
    for _ in range(_BANDWIDTH_PASSES):
        workers = [threading.Thread(target=piece.max) for piece in pieces]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(p.nbytes for p in pieces) / (time.perf_counter() - start))
    return best


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical_cores(logical: set[int]) -> int:
    """Distinct cores among `logical`, no more than a container's CPU quota allows."""
    siblings = {
        read_text(_SYS_CPU / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        for cpu in logical
    }
    quota = _cpu_quota()
    return len(siblings) if quota is None else max(1, min(len(siblings), int(quota)))


def _cpu_quota() -> float | None:
    """CPUs that the cgroup (version 2) allows, or None without a limit."""
    fields = (read_text(Path("/sys/fs/cgroup/cpu.max")) or "max").split()
    if fields[0] == "max" or len(fields) != 2:
        return None
    return int(fields[0]) / int(fields[1])


def _cpu_name() -> str:
    info = read_text(Path("/proc/cpuinfo")) or ""
    fields = dict(
        (key.strip(), value.strip())
        for key, _, value in (line.partition(":") for line in info.splitlines())
    )
    # Arm boards name the board, not the core.
    board = read_text(Path("/proc/device-tree/model"))
    return (
        fields.get("model name")
        or (board.rstrip("\0") if board else None)
        or fields.get("Hardware")
        or platform.processor()
        or platform.machine()
    )


def _last_level_cache() -> int:
    """Bytes of the largest cache that one core sees; 0 where the system does not say."""
    sizes = [0]
    for path in (_SYS_CPU / "cpu0/cache").glob("index*/size"):
        text = read_text(path) or "0"
        scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
        sizes.append(int(text.rstrip("KMG")) * scale)
    return max(sizes)
