"""The memory that a build needs, and what is free: compared before the build, not found out in it.

    host    TensorRT's copy of the weights, and the engine before it is written; may be swapped out
    device  weights on the GPU, the builder's workspace, CUDA itself; never swapped

A Jetson has one memory for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from awq_edge.artifacts import BundleManifest
from awq_edge.errors import ResourceError

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


@dataclass(frozen=True)
class SystemMemory:
    """Bytes of /proc/meminfo. available: without swapping, page cache counted as free. cma_total,
    cma_free: of the contiguous region, 0 where the kernel has none."""

    available: int
    swap_free: int
    cma_total: int
    cma_free: int


def read_system_memory(path: Path = Path("/proc/meminfo")) -> SystemMemory | None:
    """The system's memory now; None where there is no /proc/meminfo."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in _parts(lines)}
        return SystemMemory(
            available=fields["MemAvailable"],
            swap_free=fields.get("SwapFree", 0),
            cma_total=fields.get("CmaTotal", 0),
            cma_free=fields.get("CmaFree", 0),
        )
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _parts(lines: list[str]) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in lines if ":" in line]


def predict_build(
    manifest: BundleManifest, runtime: str, workspace_bytes: int | None
) -> BuildMemory:
    """What building an engine needs. workspace_bytes: the recipe's limit, None for no limit."""
    weights = sum(manifest.part_bytes.values())
    if runtime == "tensorrt-rtx":
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
    device = needed.device if unified else 0
    short_of_all = needed.host + device - system.available - system.swap_free
    short_of_memory = device - system.available
    if short_of_all <= 0 and short_of_memory <= 0:
        return
    figures = (
        f"the build needs about {_gigabytes(needed.host + device)}"
        + (f", {_gigabytes(device)} of it for the GPU" if device else "")
        + f"; {_gigabytes(system.available)} are available and {_gigabytes(system.swap_free)} of "
        "swap are free"
    )
    raise ResourceError(
        f"{figures}: {_advice(short_of_all, short_of_memory, system, unified)}, or go on anyway "
        "with --no-memory-check"
    )


def _advice(short_of_all: int, short_of_memory: int, system: SystemMemory, unified: bool) -> str:
    """What to do about it, the cheapest first."""
    if not unified:
        return f"close other programs or add {_gigabytes(short_of_all)} of swap"
    advice = ["stop the desktop (sudo systemctl isolate multi-user.target)"]
    if short_of_memory > 0:
        advice.append("export with a smaller runtime.workspace_bytes or fewer --bits")
    else:
        advice.append(f"add {_gigabytes(short_of_all)} of swap while building (docs/jetson.md)")
    if system.cma_total and system.cma_free < system.cma_total // 2:
        advice.append(
            f"CMA has {system.cma_free / 1e6:,.0f} of {system.cma_total / 1e6:,.0f} MB free: "
            "close what uses the camera or the video decoder"
        )
    return ", ".join(advice)


def _gigabytes(size: int) -> str:
    return f"{max(size, 0) / 1e9:.1f} GB"
