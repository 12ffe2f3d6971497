"""The NVIDIA GPU of this machine, asked through the CUDA driver: needs no CUDA package."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass

# cuda.h: CUdevice_attribute
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_MEMORY_CLOCK_RATE = 36
_MEMORY_BUS_WIDTH = 37
_INTEGRATED = 18
# nvml.h
_NVML_SUCCESS = 0
_UUID_BYTES = 16


_NAME_BYTES = 256


def device_name(device: int = 0) -> str | None:
    """The driver's name of a GPU ("Orin"); None where there is no driver or no such GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    done = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(handle), device) == 0
        and driver.cuDeviceGetName(name, _NAME_BYTES, handle) == 0
    )
    return name.value.decode(errors="replace") if done else None


def compute_capability(device: int = 0) -> int | None:
    """10 * major + minor of a GPU (87: Jetson Orin); None where there is no driver or no such GPU.

    device: number among the GPUs that CUDA_VISIBLE_DEVICES leaves.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    done = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(handle), device) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, handle) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, handle) == 0
    )
    return 10 * major.value + minor.value if done else None


def compute_capabilities() -> tuple[int, ...]:
    """Compute capability of every GPU, in the driver's order; empty where there is none."""
    capabilities: list[int] = []
    while (capability := compute_capability(len(capabilities))) is not None:
        capabilities.append(capability)
    return tuple(capabilities)


@dataclass(frozen=True)
class GpuMemory:
    """A GPU's memory.

    total: bytes.
    peak_bandwidth: bytes/s, from the memory's clock and width; None where the driver does not say.
    used: bytes in use by all programs, None where NVML does not say (on a Jetson, whose memory is
        the system's).
    integrated: the GPU has no memory of its own.
    """

    total: int
    peak_bandwidth: int | None
    used: int | None = None
    integrated: bool = False


def memory_figures(device: int = 0) -> GpuMemory | None:
    """The memory of a GPU; None where there is no driver or no such GPU. Makes no context."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, size = ctypes.c_int(), ctypes.c_size_t()
    done = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(handle), device) == 0
        and driver.cuDeviceTotalMem_v2(ctypes.byref(size), handle) == 0
    )
    if not done:
        return None
    clock, width = ctypes.c_int(), ctypes.c_int()
    known = (
        driver.cuDeviceGetAttribute(ctypes.byref(clock), _MEMORY_CLOCK_RATE, handle) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(width), _MEMORY_BUS_WIDTH, handle) == 0
    )
    # Two transfers a clock (CUDA samples, deviceQuery); kHz and bits.
    peak = 2 * clock.value * 1000 * width.value // 8 if known else 0
    integrated = ctypes.c_int()
    asked = driver.cuDeviceGetAttribute(ctypes.byref(integrated), _INTEGRATED, handle)
    used = None if integrated.value else _used_memory(driver, handle, size.value)
    return GpuMemory(size.value, peak or None, used, asked == 0 and bool(integrated.value))


class _NvmlMemory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def _used_memory(driver: ctypes.CDLL, handle: ctypes.c_int, total: int) -> int | None:
    """Bytes in use of a GPU, by NVML, which makes no context; found by its UUID, because NVML
    numbers GPUs otherwise than CUDA_VISIBLE_DEVICES does."""
    uuid = (ctypes.c_ubyte * _UUID_BYTES)()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if driver.cuDeviceGetUuid(ctypes.byref(uuid), handle) != 0:
            return None
        if nvml.nvmlInit_v2() != _NVML_SUCCESS:
            return None
    except (OSError, AttributeError):
        return None
    digits = bytes(uuid).hex()
    cuts = (0, 8, 12, 16, 20, 32)
    name = "GPU-" + "-".join(digits[a:b] for a, b in itertools.pairwise(cuts))
    device, memory = ctypes.c_void_p(), _NvmlMemory()
    try:
        done = (
            nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(device)) == _NVML_SUCCESS
            and nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == _NVML_SUCCESS
        )
    finally:
        nvml.nvmlShutdown()
    # A slice of a GPU (MIG) is called by the whole one's UUID: those figures are not the slice's.
    if not done or memory.total > total * 1.1:
        return None
    return min(int(memory.used), total)


def init_status() -> int | None:
    """cuInit's status (cuda.h, CUresult; 0: success, 100: no device); None without a driver."""
    try:
        return int(ctypes.CDLL("libcuda.so.1").cuInit(0))
    except OSError:
        return None


def driver_version() -> str | None:
    """The newest CUDA that the driver supports ("13.0"); None where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
