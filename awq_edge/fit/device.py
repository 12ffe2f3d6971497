"""The memory and bandwidth that a recipe names, or that are read from this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from awq_edge.device.cpu import describe_cpu, measure_read_bandwidth
from awq_edge.device.cuda_driver import memory_figures
from awq_edge.errors import ConfigError
from awq_edge.recipe import Recipe

Source = Literal["recipe", "measured", "driver"]


@dataclass(frozen=True)
class DeviceFigures:
    """Bytes and bytes/s. system_reserved: what the system keeps. bandwidth: at the highest memory
    clock. *_source: the recipe, this machine's driver, or a measurement."""

    memory: int
    system_reserved: int
    bandwidth: float | None
    memory_source: Source
    bandwidth_source: Source | None

    @property
    def usable(self) -> int:
        return self.memory - self.system_reserved


def device_figures(recipe: Recipe, *, measure: bool = True) -> DeviceFigures:
    """The figures of a recipe's device. measure: measure the bandwidth of a CPU (0.2 s) where the
    recipe has none. Raises ConfigError where the recipe leaves the memory to a machine that does
    not tell it."""
    device = recipe.device
    memory, bandwidth = device.memory_bytes, device.memory_bandwidth
    memory_source: Source = "recipe"
    bandwidth_source: Source | None = None if bandwidth is None else "recipe"
    detected: float | None = bandwidth
    if device.kind == "cuda" and (memory is None or bandwidth is None):
        found = memory_figures()
        if found is not None and memory is None:
            memory, memory_source = found.total, "driver"
        if found is not None and bandwidth is None and found.peak_bandwidth is not None:
            detected, bandwidth_source = found.peak_bandwidth, "driver"
    elif memory is None or bandwidth is None:
        cpu = describe_cpu()
        if memory is None:
            memory, memory_source = cpu.memory_bytes, "measured"
        if bandwidth is None and measure:
            detected, bandwidth_source = measure_read_bandwidth(cpu.cores), "measured"
    if memory is None:
        what = "NVIDIA GPU" if device.kind == "cuda" else "/proc/meminfo"
        raise ConfigError(
            f"recipe {recipe.name} takes the memory from this machine, which has no {what}; give "
            "the --recipe of the device (`awq-edge recipes` lists them)"
        )
    return DeviceFigures(
        memory, device.system_reserved_bytes, detected, memory_source, bandwidth_source
    )
