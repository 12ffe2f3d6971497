"""NVIDIA's management library: power, energy, clocks, throttling and memory of one GPU.

Called through ctypes: the driver brings libnvidia-ml.so.1, and no package is needed. On a Jetson
the library is there from JetPack 7 on and answers few of the calls; the rest are left out.
Source: NVIDIA, NVML API Reference (nvml.h), Device Queries and NvmlClocksEventReasons.
"""

from __future__ import annotations

import ctypes
from typing import Any

from awq_edge.sensors.reading import Absent, Reading

NAME = "nvml"
_LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
_TEXT_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
# nvmlClockType_t
_CLOCKS = {"graphics": 0, "sm": 1, "memory": 2}
# nvmlClocksEventReasons. Bits that are no throttling are left out: idle (1), clocks that the user
# or the display set (2, 0x100), sync boost (0x10).
_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
    0x200: "board limit",
    0x400: "reliability",
}


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class NvmlSensor:
    """One GPU. library: libnvidia-ml, initialised; this sensor shuts it down."""

    name = NAME
    # The driver updates the counter ten times a second: on an H200 it stood still for whole
    # requests of 20 ms, and the next one got their energy.
    tick = 0.1

    def __init__(self, library: Any, handle: ctypes.c_void_p, gpu: str) -> None:
        self._library = library
        self._handle = handle
        self.covers = f"the whole GPU ({gpu})"

    def read(self) -> Reading:
        """The driver's figures of this GPU now."""
        energy = self._number("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)  # mJ
        power = self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint)  # mW
        return Reading(
            energy=None if energy is None else energy / 1e3,
            power=None if power is None else power / 1e3,
            clocks=self._clocks(),
            throttled=self._throttled(),
            memory_used=self._memory_used(),
        )

    def close(self) -> None:
        """Shut the library down."""
        self._library.nvmlShutdown()

    def _clocks(self) -> dict[str, int]:
        hertz: dict[str, int] = {}
        for name, kind in _CLOCKS.items():
            value = ctypes.c_uint()  # MHz
            if self._ask("nvmlDeviceGetClockInfo", kind, ctypes.byref(value)):
                hertz[f"gpu {name}"] = value.value * 1_000_000
        return hertz

    def _throttled(self) -> tuple[str, ...]:
        # The older name of the same call: drivers before 535.
        for function in (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        ):
            bits = self._number(function, ctypes.c_ulonglong)
            if bits is not None:
                return tuple(name for bit, name in _REASONS.items() if bits & bit)
        return ()

    def _memory_used(self) -> int | None:
        memory = _Memory()
        if not self._ask("nvmlDeviceGetMemoryInfo", ctypes.byref(memory)):
            return None
        return int(memory.used)

    def _number(self, function: str, kind: type[ctypes.c_uint | ctypes.c_ulonglong]) -> int | None:
        value = kind()
        return value.value if self._ask(function, ctypes.byref(value)) else None

    def _ask(self, function: str, *arguments: Any) -> bool:
        """True if a call on this GPU succeeded. A driver may lack the function altogether."""
        try:
            call = getattr(self._library, function)
        except AttributeError:
            return False
        return bool(call(self._handle, *arguments) == _SUCCESS)


def find_nvml(device: int = 0, library: Any = None) -> NvmlSensor | Absent:
    """The sensor of a GPU, by its number among the driver's. library: in place of the driver's."""
    if library is None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:
            return Absent(NAME, f"{_LIBRARY} is not there: no NVIDIA driver")
        library.nvmlErrorString.restype = ctypes.c_char_p
    code = library.nvmlInit_v2()
    if code != _SUCCESS:
        return Absent(NAME, f"nvmlInit_v2 answers {code}: {_describe(library, code)}")
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(_TEXT_BYTES)
    code = library.nvmlDeviceGetHandleByIndex_v2(device, ctypes.byref(handle))
    if code != _SUCCESS:
        reason = f"GPU {device}: {_describe(library, code)}"
        library.nvmlShutdown()
        return Absent(NAME, reason)
    known = library.nvmlDeviceGetName(handle, name, _TEXT_BYTES) == _SUCCESS
    return NvmlSensor(library, handle, name.value.decode(errors="replace") if known else "unnamed")


def _describe(library: Any, code: int) -> str:
    text = library.nvmlErrorString(code)
    return str(text.decode(errors="replace")) if text else f"error {code}"
