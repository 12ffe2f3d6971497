"""What is asked of the CUDA driver, with a library in its place that answers as cuda.h says."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from awq_edge.device import cuda_driver
from awq_edge.device.cuda_driver import GpuMemory, driver_version, memory_figures

OK, INVALID_DEVICE = 0, 101
# cuda.h: CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE (kHz), ..._GLOBAL_MEMORY_BUS_WIDTH (bits)
CLOCK, WIDTH = 36, 37


class Driver:
    """One GPU: an H100 SXM's memory."""

    def __init__(self) -> None:
        self.attributes = {CLOCK: 2_619_000, WIDTH: 5120}

    def cuInit(self, flags: int) -> int:
        return OK if flags == 0 else INVALID_DEVICE

    def cuDeviceGet(self, handle: Any, device: int) -> int:
        handle._obj.value = 7
        return OK if device == 0 else INVALID_DEVICE

    def cuDeviceTotalMem_v2(self, size: Any, handle: ctypes.c_int) -> int:
        assert handle.value == 7 and ctypes.sizeof(size._obj) == ctypes.sizeof(ctypes.c_size_t)
        size._obj.value = 85_029_158_912
        return OK

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:
        if attribute not in self.attributes:
            return INVALID_DEVICE
        value._obj.value = self.attributes[attribute]
        return OK

    def cuDriverGetVersion(self, value: Any) -> int:
        value._obj.value = 13020
        return OK


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: found)
    return found


def test_memory_and_its_bandwidth(driver: Driver) -> None:
    assert memory_figures() == GpuMemory(85_029_158_912, 3_352_320_000_000)  # 3.35 TB/s
    assert memory_figures(1) is None


def test_a_driver_that_does_not_tell_the_clock(driver: Driver) -> None:
    del driver.attributes[CLOCK]
    assert memory_figures() == GpuMemory(85_029_158_912, None)
    driver.attributes[CLOCK] = 0
    assert memory_figures() == GpuMemory(85_029_158_912, None)


def test_the_driver_s_cuda(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver_version() == "13.2"
    monkeypatch.setattr(driver, "cuDriverGetVersion", lambda value: INVALID_DEVICE)
    assert driver_version() is None


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", missing)
    assert memory_figures() is None and driver_version() is None
