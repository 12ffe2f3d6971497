"""What the CPU is, from the files that Linux shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from awq_edge.device import cpu


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files that the module sees, by path; all others are missing."""
    files: dict[str, str] = {}
    monkeypatch.setattr(cpu, "read_text", lambda path: files.get(str(path)))
    monkeypatch.setattr(cpu, "_allowed_cpus", lambda: {0, 1, 2, 3})
    return files


def siblings(files: dict[str, str], pairs: list[str]) -> None:
    for number, pair in enumerate(pairs):
        files[f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"] = pair


def test_hyperthreads_are_not_cores(system: dict[str, str]) -> None:
    siblings(system, ["0,2", "1,3", "0,2", "1,3"])
    info = cpu.describe_cpu()
    assert (info.cores, info.threads) == (2, 4)


def test_without_topology_every_cpu_is_a_core(system: dict[str, str]) -> None:
    assert cpu.describe_cpu().cores == 4


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)],
)
def test_a_containers_quota_counts(system: dict[str, str], limit: str, cores: int) -> None:
    system["/sys/fs/cgroup/cpu.max"] = limit
    assert cpu.describe_cpu().cores == cores


def test_names(system: dict[str, str]) -> None:
    system["/proc/device-tree/model"] = "NVIDIA Jetson Orin Nano Developer Kit\0"
    assert cpu.describe_cpu().name == "NVIDIA Jetson Orin Nano Developer Kit"
    system["/proc/cpuinfo"] = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"
    assert cpu.describe_cpu().name == "Some CPU @ 2 GHz"


def test_governor_is_the_power_mode(system: dict[str, str]) -> None:
    assert cpu.describe_cpu().power_mode is None
    system["/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"] = "powersave"
    assert cpu.describe_cpu().power_mode == "powersave"


def test_this_machine() -> None:
    info = cpu.describe_cpu()
    assert 1 <= info.cores <= info.threads <= (os.cpu_count() or 1)
    assert info.name and info.architecture
    if Path("/proc/meminfo").exists():
        assert info.memory_bytes is not None and info.memory_bytes > 1 << 20


def test_bandwidth_counts_every_byte_of_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still but for one second a pass, so the figure is the bytes of one."""
    ticks = iter(range(1000))
    monkeypatch.setattr(cpu.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(cpu, "_BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setattr(cpu, "_last_level_cache", lambda: 1 << 16)
    assert cpu.measure_read_bandwidth(2) == 1 << 20
    monkeypatch.setattr(cpu, "_last_level_cache", lambda: 1 << 20)
    assert cpu.measure_read_bandwidth(2) == 4 << 20
