"""The device of a recipe: its memory, its power modes, and the types of such figures."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from awq_edge.artifacts.schema import Record
from awq_edge.errors import ConfigError
from awq_edge.units import format_bandwidth, format_size, parse_bandwidth, parse_size

DETECT = "detect"  # stands in a recipe for a figure that is read from the machine


def _compute_capability(text: str) -> str:
    if re.fullmatch(r"[0-9]+\.[0-9]", text) is None:
        raise ValueError('must be MAJOR.MINOR, such as "8.7"')
    return text


def _module(text: str) -> str:
    if re.fullmatch(r"p\d{4}-\d{4}", text) is None:
        raise ValueError('must be a part number, such as "p3767-0003"')
    return text


Module = Annotated[str, AfterValidator(_module)]
Size = Annotated[int, BeforeValidator(parse_size), PlainSerializer(format_size)]
Bandwidth = Annotated[
    int, BeforeValidator(parse_bandwidth), Field(gt=0), PlainSerializer(format_bandwidth)
]
DetectableSize = Annotated[
    int | None,
    BeforeValidator(lambda value: None if value == DETECT else parse_size(value)),
    PlainSerializer(lambda size: DETECT if size is None else format_size(size)),
]
DetectableBandwidth = Annotated[
    int | None,
    BeforeValidator(lambda value: None if value == DETECT else parse_bandwidth(value)),
    PlainSerializer(lambda rate: DETECT if rate is None else format_bandwidth(rate)),
]
PositiveInt = Annotated[int, Field(gt=0)]


class Part(Record, strict=True):
    """A table of a recipe."""


class PowerMode(Part):
    """One nvpmodel mode. watts: its power budget, None if it has none. memory_bandwidth: bytes/s,
    what the memory clock of this mode allows. default: the mode the device boots in."""

    name: str
    watts: PositiveInt | None = None
    memory_bandwidth: Bandwidth
    default: bool = False


class Device(Part):
    """The hardware. memory_bytes: bytes installed. memory_bandwidth: bytes/s at the highest memory
    clock. system_reserved_bytes: bytes that the system keeps. None for the first two: detect.
    modules: part numbers of a Jetson's modules ("p3767-0003"), as /proc/device-tree/compatible has
    them. kind "cuda" is any NVIDIA GPU."""

    kind: Literal["cpu", "cuda", "jetson", "rtx"]
    compute_capability: Annotated[str, AfterValidator(_compute_capability)] | None = None
    sm_count: PositiveInt | None = None
    memory_bytes: DetectableSize
    memory_bandwidth: DetectableBandwidth
    unified_memory: bool
    system_reserved_bytes: Size
    power_modes: Annotated[tuple[PowerMode, ...], Field(strict=False)] = ()
    modules: Annotated[tuple[Module, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        if self.kind not in ("cpu", "cuda"):
            for key in ("compute_capability", "sm_count", "memory_bytes", "memory_bandwidth"):
                if getattr(self, key) is None:
                    raise ValueError(f'kind "{self.kind}" needs a figure for {key}')
        if self.memory_bytes is not None and self.system_reserved_bytes >= self.memory_bytes:
            raise ValueError(
                f"system_reserved_bytes ({format_size(self.system_reserved_bytes)}) leaves nothing "
                f"of memory_bytes ({format_size(self.memory_bytes)})"
            )
        names = [mode.name for mode in self.power_modes]
        if len(set(names)) != len(names):
            raise ValueError(f"power_modes: a name occurs twice in {', '.join(names)}")
        if names and sum(mode.default for mode in self.power_modes) != 1:
            raise ValueError(
                f"power_modes: exactly one of {', '.join(names)} must have default = true"
            )
        for mode in self.power_modes:
            if self.memory_bandwidth is not None and mode.memory_bandwidth > self.memory_bandwidth:
                raise ValueError(
                    f"power_modes: {mode.name} has {format_bandwidth(mode.memory_bandwidth)}, more "
                    f"than memory_bandwidth ({format_bandwidth(self.memory_bandwidth)})"
                )
        return self

    @property
    def usable_memory_bytes(self) -> int | None:
        """Bytes left for a model beside the system; None where memory is detected."""
        return None if self.memory_bytes is None else self.memory_bytes - self.system_reserved_bytes

    def power_mode(self, name: str | None = None) -> PowerMode | None:
        """The mode called `name`, or the default one; None for a device without modes.

        Raises ConfigError for a name that the device does not have.
        """
        for mode in self.power_modes:
            if mode.name == name or (name is None and mode.default):
                return mode
        if name is None:
            return None
        known = ", ".join(mode.name for mode in self.power_modes)
        allowed = f"allowed values: {known}" if known else "this device has no power modes"
        raise ConfigError(f'unknown power mode "{name}"; {allowed}')
