"""Free memory against what a build needs, and the advice where it does not fit."""

from __future__ import annotations

import pytest

from awq_edge.device.system_memory import SystemMemory
from awq_edge.errors import ResourceError
from awq_edge.tensorrt.builder.memory import (
    BuildMemory,
    predict_build,
    require_memory,
)
from awq_edge.tensorrt.builder.targets import engine_of

GB = 1_000_000_000


def system(
    available: float, swap: float = 0, cma_free: float = 0.2, zram: float = 0
) -> SystemMemory:
    """What can be had beside the region for contiguous allocations."""
    return SystemMemory(
        total=16 * GB,
        available=int((available + cma_free) * GB),
        swap=int(swap * GB),
        compressed_swap=int(zram * GB),
        cma_total=int(0.25 * GB),
        cma_free=int(cma_free * GB),
    )


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
    assert "needs about 5.00 GB, 2.00 GB of it for the GPU; 4.20 GB are available" in message
    assert "200.0 MB of the first: CMA, which the GPU cannot have" in message
    assert "stop the desktop" in message
    assert "add 800.0 MB of swap on a disk" in message
    assert "--no-memory-check" in message


def test_swap_is_not_advised_for_the_gpus_part() -> None:
    message = refusal(BuildMemory(host=GB, device=2 * GB), system(1.5, swap=8))
    assert "of swap while" not in message
    assert "runtime.workspace_bytes" in message


def test_cma_is_named_where_it_is_taken() -> None:
    message = refusal(BuildMemory(3 * GB, 2 * GB), system(4.0, cma_free=0.05))
    assert "CMA has 50.0 MB of 250.0 MB free" in message


def test_workstation_gets_its_own_advice() -> None:
    message = refusal(BuildMemory(host=3 * GB, device=0), system(2.0), unified=False)
    assert "close other programs or add 800.0 MB of swap" in message
    assert "desktop" not in message


def test_swap_in_memory_does_not_count() -> None:
    """Half of an Orin's memory is swap in zram as it comes; what is put there stays in memory."""
    needed = BuildMemory(host=3 * GB, device=2 * GB)
    message = refusal(needed, system(4.0, zram=4, cma_free=0))
    assert "4.00 GB are available and 0 B of swap are free; another 4.00 GB of swap" in message
    assert "compressed memory (zram) and do not count: " in message
    require_memory(needed, system(4.0, swap=4, cma_free=0), unified=True)


def test_cma_is_not_for_the_gpu() -> None:
    needed = BuildMemory(host=0, device=4 * GB)
    require_memory(needed, system(4.0, cma_free=0.2), unified=True)
    assert "CMA" in refusal(needed, system(3.9, swap=8, cma_free=0.2))


def test_prediction_is_of_the_weights() -> None:
    rtx = predict_build(4 * GB, engine_of("tensorrt-rtx"), 1 << 30)
    assert rtx.device == 0
    assert 2 * 4 * GB < rtx.host < 3 * 4 * GB
    limited = predict_build(4 * GB, engine_of("tensorrt"), 512 << 20)
    assert limited.device - predict_build(4 * GB, engine_of("tensorrt"), None).device == 512 << 20
    assert limited.device > 4 * GB
