"""What memory can be had, from the files that Linux shows, and the meter on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.device import meter
from awq_edge.device.meter import MemoryMeter
from awq_edge.device.system_memory import SystemMemory, read_system_memory
from tests.device.fake_device import FakeLayer

KB, GB = 1024, 10**9
MEMINFO = """MemTotal:        7802312 kB
MemFree:          412340 kB
MemAvailable:    5120000 kB
Active(file):    2000000 kB
Inactive(file):  1500000 kB
SwapTotal:       3901152 kB
SwapFree:        3901152 kB
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
SWAPS = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
ZRAM = "/dev/zram0                              partition\t1950576\t\t500576\t\t5\n"
DISK = "/swap file                              file\t\t8388604\t\t1048576\t\t-2\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def read(root: Path, **files: str) -> SystemMemory:
    found = read_system_memory(machine(root, {"proc/swaps": SWAPS, **files}))
    assert found is not None
    return found


def test_figures_of_meminfo(tmp_path: Path) -> None:
    assert read(tmp_path) == SystemMemory(
        total=7802312 * KB,
        available=5120000 * KB,
        cached=3500000 * KB,
        cma_total=262144 * KB,
        cma_free=131072 * KB,
        nvmap=740388 * KB,
        installed=7802312 * KB,
    )
    assert read(tmp_path).used == (7802312 - 5120000) * KB


def test_what_a_gpu_pins_is_not_cma(tmp_path: Path) -> None:
    assert read(tmp_path).pinnable == (5120000 - 131072) * KB


@pytest.mark.parametrize(
    ("swaps", "swap", "compressed"),
    [
        ("", 0, 0),
        (ZRAM, 0, 1450000),
        (ZRAM.replace("zram0", "zram1") + ZRAM, 0, 2900000),
        ("/dev/ram0 partition 1000 0 -1\n", 0, 1000),
        ("/dev/nvme0n1p2 partition 3000000 1000 -2\n", 2999000, 0),
        (ZRAM + "/data/zram0.img file 1000000 0 -2\n", 1000000, 1450000),
    ],
)
def test_swap_in_memory_is_not_swap(tmp_path: Path, swaps: str, swap: int, compressed: int) -> None:
    found = read(tmp_path, **{"proc/swaps": SWAPS + swaps})
    assert (found.swap, found.compressed_swap) == (swap * KB, compressed * KB)
    assert found.pageable == 5120000 * KB + swap * KB


def test_swap_of_the_host_is_not_a_container_s(tmp_path: Path) -> None:
    """lxcfs shows a meminfo of the container, and the host's /proc/swaps."""
    inside = MEMINFO.replace("SwapFree:        3901152", "SwapFree:              0")
    assert read(tmp_path, **{"proc/meminfo": inside, "proc/swaps": SWAPS + DISK}).swap == 0


def test_a_name_with_a_space(tmp_path: Path) -> None:
    assert read(tmp_path, **{"proc/swaps": SWAPS + DISK}).swap == 3901152 * KB  # SwapFree


@pytest.mark.parametrize(
    ("files", "total", "available", "swap"),
    [
        ({"sys/fs/cgroup/memory.max": "max"}, 7802312 * KB, 5120000 * KB, 3 * GB),
        (
            {
                "sys/fs/cgroup/memory.max": "4000000000",
                "sys/fs/cgroup/memory.current": "3500000000",
                "sys/fs/cgroup/memory.stat": "inactive_file 700000000\nactive_file 100000000\n",
                "sys/fs/cgroup/memory.swap.max": "0",
            },
            4 * GB, 1_300_000_000, 0,
        ),
        (  # of a systemd unit: the limit of a group above it
            {
                "proc/self/cgroup": "0::/user.slice/run-1.scope\n",
                "sys/fs/cgroup/user.slice/memory.max": "2000000000",
                "sys/fs/cgroup/user.slice/memory.current": "500000000",
                "sys/fs/cgroup/user.slice/run-1.scope/memory.max": "max",
            },
            2 * GB, 1_500_000_000, 3 * GB,
        ),
        (  # version 1
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "400000000",
            },
            1 * GB, 600_000_000, 3 * GB,
        ),
        (
            {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
            7802312 * KB, 5120000 * KB, 3 * GB,
        ),
        (  # a limit above what the machine has
            {"sys/fs/cgroup/memory.max": "99000000000", "sys/fs/cgroup/memory.current": "5"},
            7802312 * KB, 5120000 * KB, 3 * GB,
        ),
    ],
)  # fmt: skip
def test_limits_of_cgroups(
    tmp_path: Path, files: dict[str, str], total: int, available: int, swap: int
) -> None:
    disk = f"/dev/sda2 partition {3 * GB // KB + 1} 0 -2\n"
    found = read(tmp_path, **{"proc/swaps": SWAPS + disk, **files})
    assert (found.total, found.available) == (total, available)
    assert found.swap == pytest.approx(swap, abs=2 * KB)
    assert found.limited == (total < 7802312 * KB)


def test_nvmap_from_its_own_table_where_meminfo_lacks_it(tmp_path: Path) -> None:
    without = "".join(line for line in MEMINFO.splitlines(True) if "NvMap" not in line)
    table = "sys/kernel/debug/nvmap/iovmm/clients"
    assert read(tmp_path, **{"proc/meminfo": without, table: CLIENTS}).nvmap == 204800 * KB
    (tmp_path / table).unlink()  # another user than root does not see it
    assert read(tmp_path, **{"proc/meminfo": without}).nvmap is None


def test_a_system_without_meminfo(tmp_path: Path) -> None:
    assert read_system_memory(tmp_path) is None
    assert read_system_memory(machine(tmp_path, {"proc/meminfo": "MemTotal: 12 kB\n"})) is None


def test_the_meter_of_a_jetson_reads_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([100, 700, 900, 800])

    def read() -> SystemMemory:
        return SystemMemory(8000, 8000 - next(used, 800), cma_free=200, nvmap=55)

    monkeypatch.setattr(meter, "read_system_memory", read)
    layer = FakeLayer(integrated=True)
    found = MemoryMeter(layer)
    found.mark_loaded()
    found.sample()
    found.sample()
    figures = found.figures()
    assert (figures.before, figures.loaded, figures.peak) == (100, 700, 900)
    assert (figures.total, figures.source, figures.nvmap) == (8000, "/proc/meminfo", 55)
    assert found.available() == 7000
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
