"""A Jetson's memory, from the files that its kernel shows, and the meter on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from backends.fake_device import FakeLayer

from awq_edge.device import meter
from awq_edge.device.meter import MemoryMeter
from awq_edge.device.tegra import TegraMemory, read_tegra_memory

MEMINFO = """MemTotal:        7802312 kB
MemFree:          412340 kB
MemAvailable:    5120000 kB
SwapTotal:       3901152 kB
NvMapMemFree:       1020 kB
NvMapMemUsed:     740388 kB
CmaTotal:         262144 kB
CmaFree:          131072 kB
HugePages_Total:       0
"""
CLIENTS = """CLIENT                        PROCESS      PID        SIZE
user                            Xorg     1234       1024K
total                                             204800K
"""


def files(tmp_path: Path, meminfo: str, clients: str | None = None) -> tuple[Path, Path]:
    paths = tmp_path / "meminfo", tmp_path / "clients"
    paths[0].write_text(meminfo)
    if clients is not None:
        paths[1].write_text(clients)
    return paths


def test_figures_of_meminfo(tmp_path: Path) -> None:
    found = read_tegra_memory(*files(tmp_path, MEMINFO))
    assert found == TegraMemory(
        total=7802312 * 1024,
        available=5120000 * 1024,
        nvmap=740388 * 1024,
        cma_free=131072 * 1024,
    )
    assert found.used == (7802312 - 5120000) * 1024


def test_nvmap_from_its_own_table_where_meminfo_lacks_it(tmp_path: Path) -> None:
    without = "".join(line for line in MEMINFO.splitlines(True) if "NvMap" not in line)
    found = read_tegra_memory(*files(tmp_path, without, CLIENTS))
    assert found is not None and found.nvmap == 204800 * 1024
    (tmp_path / "clients").unlink()  # another user than root does not see it
    found = read_tegra_memory(*files(tmp_path, without))
    assert found is not None and found.nvmap is None


def test_a_system_without_meminfo(tmp_path: Path) -> None:
    assert read_tegra_memory(tmp_path / "none") is None
    assert read_tegra_memory(*files(tmp_path, "MemTotal: 12 kB\n")) is None


def test_the_meter_of_a_jetson_reads_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([100, 700, 900, 800])
    memory = TegraMemory(total=8000, available=8000, nvmap=55, cma_free=None)

    def read() -> TegraMemory:
        nonlocal memory
        memory = TegraMemory(8000, 8000 - next(used, 800), 55, None)
        return memory

    monkeypatch.setattr(meter, "read_tegra_memory", read)
    layer = FakeLayer(integrated=True)
    found = MemoryMeter(layer)
    found.mark_loaded()
    found.sample()
    found.sample()
    figures = found.figures()
    assert (figures.before, figures.loaded, figures.peak) == (100, 700, 900)
    assert (figures.total, figures.source, figures.nvmap) == (8000, "/proc/meminfo", 55)
    assert found.available() == 7200
    assert "memory" not in layer.calls  # cudaMemGetInfo leaves out what the system could free


def test_the_meter_of_other_gpus_asks_cuda() -> None:
    layer = FakeLayer(memory=1 << 20)
    found = MemoryMeter(layer)
    address = layer.allocate(4096)
    found.mark_loaded()
    layer.free(address)
    found.sample()
    figures = found.figures()
    assert (figures.before, figures.loaded, figures.peak) == (0, 4096, 4096)
    assert (figures.source, figures.nvmap) == ("cudaMemGetInfo", None)
    assert found.available() == 1 << 20
