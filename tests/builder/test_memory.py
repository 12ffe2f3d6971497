"""Free memory against what a build needs, and the advice where it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.artifacts import Bundle
from awq_edge.builder.memory import (
    BuildMemory,
    SystemMemory,
    predict_build,
    read_system_memory,
    require_memory,
)
from awq_edge.errors import ResourceError

GB = 1_000_000_000
ORIN_NANO = """MemTotal:        7802640 kB
MemFree:          512000 kB
MemAvailable:    6000000 kB
SwapTotal:       3901312 kB
SwapFree:        3901312 kB
CmaTotal:         262144 kB
CmaFree:          100000 kB
HugePages_Total:       0
"""


def test_meminfo_is_read(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text(ORIN_NANO)
    assert read_system_memory(file) == SystemMemory(
        available=6000000 * 1024,
        swap_free=3901312 * 1024,
        cma_total=262144 * 1024,
        cma_free=100000 * 1024,
    )
    file.write_text("MemTotal: 1 kB\n")
    assert read_system_memory(file) is None
    assert read_system_memory(tmp_path / "none") is None


def system(available: float, swap: float = 0, cma_free: float = 0.2) -> SystemMemory:
    return SystemMemory(int(available * GB), int(swap * GB), int(0.25 * GB), int(cma_free * GB))


def refusal(needed: BuildMemory, memory: SystemMemory, unified: bool = True) -> str:
    with pytest.raises(ResourceError) as error:
        require_memory(needed, memory, unified=unified)
    return str(error.value)


def test_what_fits_passes() -> None:
    needed = BuildMemory(host=3 * GB, device=2 * GB)
    require_memory(needed, system(5.1), unified=True)
    require_memory(needed, system(2.1, swap=3), unified=True)  # the host's part is swapped out
    require_memory(needed, system(3.1), unified=False)  # the GPU has its own
    require_memory(needed, None, unified=True)


def test_swap_is_advised_where_it_helps() -> None:
    message = refusal(BuildMemory(host=3 * GB, device=2 * GB), system(4.0))
    assert "needs about 5.0 GB, 2.0 GB of it for the GPU; 4.0 GB are available" in message
    assert "stop the desktop" in message
    assert "add 1.0 GB of swap" in message
    assert "--no-memory-check" in message
    assert "CMA" not in message


def test_swap_is_not_advised_for_the_gpus_part() -> None:
    message = refusal(BuildMemory(host=GB, device=2 * GB), system(1.5, swap=8))
    assert "of swap while" not in message
    assert "runtime.workspace_bytes" in message


def test_cma_is_named_where_it_is_taken() -> None:
    message = refusal(BuildMemory(3 * GB, 2 * GB), system(4.0, cma_free=0.05))
    assert "CMA has 50 of 250 MB free" in message


def test_workstation_gets_its_own_advice() -> None:
    message = refusal(BuildMemory(host=3 * GB, device=0), system(2.0), unified=False)
    assert "close other programs or add 1.0 GB of swap" in message
    assert "desktop" not in message


def test_prediction_is_of_the_weights(device_bundles: dict[str, Path]) -> None:
    manifest = Bundle.open(next(iter(device_bundles.values()))).manifest
    large = manifest.model_copy(update={"part_bytes": {"blocks": 4 * GB}})
    rtx = predict_build(large, "tensorrt-rtx", 1 << 30)
    assert rtx.device == 0
    assert 2 * 4 * GB < rtx.host < 3 * 4 * GB
    limited = predict_build(large, "tensorrt", 512 << 20)
    assert limited.device - predict_build(large, "tensorrt", None).device == 512 << 20
    assert limited.device > 4 * GB
