"""The memory that a build needs, and what is free: compared before the build, not found out in it.

    host    TensorRT's copy of the weights, and the engine before it is written; may be swapped out
    device  weights on the GPU, the builder's workspace, CUDA itself; never swapped

A Jetson has one memory for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from awq_edge.device.system_memory import SystemMemory
from awq_edge.errors import ResourceError
from awq_edge.recipe.runtimes import EngineKind
from awq_edge.units import size_text

# TensorRT for RTX 1.7.1 ahead of time, SM89, x86-64 Linux (docs/build.md): resident memory of the
# process reached 0.29 GB with 6 MB of weights, 2.60 GB with 705 MB, 11.67 GB with 3,769 MB. About a
# third of that is the mapped weight file, which the system takes back when memory runs short: the
# available memory fell by 7.33 GB in the last case.
_RTX_WEIGHT_COPIES = 2.2
_RTX_OVERHEAD = 500_000_000
# TensorRT on a device, not measured yet: the parser's weights and the serialized engine on the
# host, the engine's weights on the GPU; two CUDA libraries' worth of overhead.
_HOST_WEIGHT_COPIES = 2.0
_HOST_OVERHEAD = 500_000_000
_DEVICE_OVERHEAD = 400_000_000


@dataclass(frozen=True)
class BuildMemory:
    """Bytes that a build needs."""

    host: int
    device: int

    @property
    def total(self) -> int:
        return self.host + self.device


def predict_build(weights: int, engine: EngineKind, workspace_bytes: int | None) -> BuildMemory:
    """The memory that building an engine needs.

    weights: bytes of the bundle's.
    workspace_bytes: the recipe's limit, None for no limit.
    """
    if engine.ahead_of_time:
        return BuildMemory(int(_RTX_WEIGHT_COPIES * weights) + _RTX_OVERHEAD, 0)
    return BuildMemory(
        host=int(_HOST_WEIGHT_COPIES * weights) + _HOST_OVERHEAD,
        device=weights + (workspace_bytes or 0) + _DEVICE_OVERHEAD,
    )


def require_memory(needed: BuildMemory, system: SystemMemory | None, *, unified: bool) -> None:
    """Raise ResourceError, with advice, when a build will not fit.

    unified: the GPU's part comes out of the system's memory. Nothing is checked where the system
    does not tell what is free.
    """
    if system is None:
        return
    short = shortage(needed, system, unified=unified)
    if short is None:
        return
    device = needed.device if unified else 0
    figures = (
        f"the build needs about {size_text(needed.host + device)}"
        + (f", {size_text(device)} of it for the GPU" if device else "")
        + f"; {size_text(system.available)} are available and {size_text(system.swap)} of "
        "swap are free"
    )
    if unified and system.cma_free:
        figures += f" ({size_text(system.cma_free)} of the first: CMA, which the GPU cannot have)"
    if system.compressed_swap:
        figures += (
            f"; another {size_text(system.compressed_swap)} of swap are compressed memory (zram) "
            "and do not count"
        )
    raise ResourceError(
        f"{figures}: {_advice(short, system, unified)}, or go on anyway with --no-memory-check"
    )


@dataclass(frozen=True)
class Shortage:
    """Bytes that a build is short of: of everything, and of memory that is not swapped."""

    of_all: int
    of_memory: int


def shortage(needed: BuildMemory, system: SystemMemory, *, unified: bool) -> Shortage | None:
    """The memory that a build is short of; None where it fits. `unified` as in `require_memory`."""
    device = needed.device if unified else 0
    of_all = needed.host + device - system.pageable
    of_memory = device - system.pinnable
    return None if of_all <= 0 and of_memory <= 0 else Shortage(of_all, of_memory)


def _advice(short: Shortage, system: SystemMemory, unified: bool) -> str:
    """The remedies, the cheapest first."""
    if not unified:
        return f"close other programs or add {size_text(short.of_all)} of swap"
    advice = ["stop the desktop (sudo systemctl isolate multi-user.target)"]
    if short.of_memory > 0:
        advice.append("export with a smaller runtime.workspace_bytes or fewer --bits")
    else:
        advice.append(f"add {size_text(short.of_all)} of swap on a disk (docs/jetson.md)")
    if system.cma_total and system.cma_free < system.cma_total // 2:
        advice.append(
            f"CMA has {size_text(system.cma_free)} of {size_text(system.cma_total)} free: "
            "close what uses the camera or the video decoder"
        )
    return ", ".join(advice)
