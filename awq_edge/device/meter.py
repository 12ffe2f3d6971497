"""The use of a GPU's memory: before loading, after it, and at its peak."""

from __future__ import annotations

from dataclasses import dataclass

from awq_edge.device.layer import DeviceLayer
from awq_edge.device.system_memory import read_system_memory


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes in use on a whole GPU: before loading, after it, and at its peak."""

    before: int
    loaded: int
    peak: int
    total: int  # the GPU's bytes
    source: str  # of the figures
    nvmap: int | None  # NvMap's part of `loaded`; Jetson only


class MemoryMeter:
    """Bytes in use on the whole GPU: other programs are in it, so differences count.

    On a Jetson it is the system's memory, read from /proc/meminfo. On other GPUs cudaMemGetInfo's,
    which can be asked only once CUDA is there: CUDA's own context is in every figure.
    """

    def __init__(self, layer: DeviceLayer) -> None:
        self._layer = layer
        self._before = self._loaded = self._peak = self._used()

    def sample(self) -> None:
        """Sample once more for the peak."""
        self._peak = max(self._peak, self._used())

    def mark_loaded(self) -> None:
        """Record the bytes in use now as those after loading."""
        self._loaded = self._used()
        self._peak = max(self._peak, self._loaded)

    def available(self) -> int:
        """Bytes that could be allocated now."""
        system = read_system_memory() if self._layer.gpu.integrated else None
        return self._layer.memory()[0] if system is None else system.pinnable

    def figures(self) -> DeviceMemory:
        """The figures so far; takes no sample."""
        system = read_system_memory() if self._layer.gpu.integrated else None
        return DeviceMemory(
            before=self._before,
            loaded=self._loaded,
            peak=self._peak,
            total=self._layer.memory()[1] if system is None else system.total,
            source="cudaMemGetInfo" if system is None else "/proc/meminfo",
            nvmap=None if system is None else system.nvmap,
        )

    def _used(self) -> int:
        if self._layer.gpu.integrated:
            system = read_system_memory()
            if system is not None:
                return system.used
        free, total = self._layer.memory()
        return total - free
