"""The NVIDIA GPU of this machine, asked through the CUDA driver: needs no CUDA package."""

from __future__ import annotations

import ctypes

# cuda.h: CUdevice_attribute
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


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
    """Of every GPU of this machine, in the driver's order; empty where there is none."""
    found: list[int] = []
    while (capability := compute_capability(len(found))) is not None:
        found.append(capability)
    return tuple(found)
