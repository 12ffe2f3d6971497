"""The memory and bandwidth that a recipe names, or that are read from this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from awq_edge.device.cpu import describe_cpu, measure_read_bandwidth
from awq_edge.device.cuda_driver import memory_figures
from awq_edge.device.system_memory import read_system_memory
from awq_edge.errors import ConfigError
from awq_edge.recipe.recipes import Recipe

Source = Literal["recipe", "measured", "driver"]


@dataclass(frozen=True)
class DeviceFigures:
    """A device's memory (bytes) and bandwidth (bytes/s, at the highest memory clock).
    system_reserved: the system's share; of a measured memory, at least the bytes in use by it and
    other programs now. *_source: the recipe, this machine's driver, or a measurement. in_use: bytes
    of a measured memory that others have."""

    memory: int
    system_reserved: int
    bandwidth: float | None
    memory_source: Source
    bandwidth_source: Source | None
    in_use: int | None = None

    @property
    def usable(self) -> int:
        return max(0, self.memory - self.system_reserved)


def device_figures(recipe: Recipe, *, measure: bool = True) -> DeviceFigures:
    """The figures of a recipe's device. measure: measure the bandwidth of a CPU (0.2 s) where the
    recipe has none. Raises ConfigError where the recipe leaves the memory to a machine that does
    not tell it."""
    device = recipe.device
    memory, bandwidth = device.memory_bytes, device.memory_bandwidth
    memory_source: Source = "recipe"
    bandwidth_source: Source | None = None if bandwidth is None else "recipe"
    detected: float | None = bandwidth
    in_use: int | None = None
    if device.kind == "cuda" and (memory is None or bandwidth is None):
        gpu = memory_figures()
        if gpu is not None and memory is None:
            memory, memory_source, in_use = gpu.total, "driver", gpu.used
            if gpu.integrated:  # the system's memory, of which a GPU's part is pinned
                memory, in_use = _of_system(pinned=True)
        if gpu is not None and bandwidth is None and gpu.peak_bandwidth is not None:
            detected, bandwidth_source = gpu.peak_bandwidth, "driver"
    elif memory is None or bandwidth is None:
        if memory is None:
            (memory, in_use), memory_source = _of_system(pinned=False), "measured"
        if bandwidth is None and measure:
            detected, bandwidth_source = measure_read_bandwidth(describe_cpu().cores), "measured"
    if memory is None:
        what = "NVIDIA GPU" if device.kind == "cuda" else "/proc/meminfo"
        raise ConfigError(
            f"recipe {recipe.name} takes the memory from this machine, which has no {what}; give "
            "the --recipe of the device (`awq-edge recipes` lists them)"
        )
    reserved = max(device.system_reserved_bytes, in_use or 0)
    return DeviceFigures(memory, reserved, detected, memory_source, bandwidth_source, in_use)


def _of_system(*, pinned: bool) -> tuple[int | None, int | None]:
    """The system's memory, and the part that cannot be had now; swap is no place for weights. None
    where it does not tell. pinned: for a GPU that shares it."""
    system = read_system_memory()
    if system is None:
        return None, None
    return system.total, system.total - (system.pinnable if pinned else system.available)
