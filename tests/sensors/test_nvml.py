"""The NVML sensor on a made-up library. (Not run against a driver yet.)"""

from __future__ import annotations

import pytest

from awq_edge.sensors.nvml import NvmlSensor, find_nvml
from awq_edge.sensors.reading import Absent, Reading

from .fake_nvml import MISSING, FakeNvml

FIGURES = {
    "nvmlDeviceGetTotalEnergyConsumption": 5_000_000_123,  # mJ, beyond 32 bits
    "nvmlDeviceGetPowerUsage": 45_600,  # mW
    "nvmlDeviceGetClockInfo": {0: 1900, 1: 1905, 2: 8001},  # MHz
    "nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x4 | 0x20,  # idle is no throttling
    "nvmlDeviceGetMemoryInfo": {"total": 8 << 30, "free": 3 << 30, "used": 5 << 30},
}


def sensor(figures: dict[str, object]) -> tuple[NvmlSensor, FakeNvml]:
    library = FakeNvml(figures)
    found = find_nvml(0, library)
    assert isinstance(found, NvmlSensor), found
    return found, library


def test_everything_that_a_card_tells() -> None:
    found, library = sensor(FIGURES)
    assert found.covers == "the whole GPU (Fake GPU)"
    reading = found.read()
    assert reading.energy == pytest.approx(5_000_000.123)
    assert reading.power == pytest.approx(45.6)
    assert reading.clocks == {
        "gpu graphics": 1_900_000_000,
        "gpu sm": 1_905_000_000,
        "gpu memory": 8_001_000_000,
    }
    assert reading.throttled == ("power cap", "thermal, by software")
    assert reading.memory_used == 5 << 30
    found.close()
    assert library.calls[-1] == "nvmlShutdown"


def test_what_a_card_does_not_support_is_left_out() -> None:
    found, _ = sensor({"nvmlDeviceGetPowerUsage": 1000})
    assert found.read() == Reading(power=1.0)


def test_drivers_with_the_older_name_of_the_reasons() -> None:
    figures = {
        "nvmlDeviceGetCurrentClocksEventReasons": MISSING,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x40,
    }
    found, _ = sensor(figures)
    assert found.read().throttled == ("thermal, by hardware",)


def test_absence_has_a_reason() -> None:
    found = find_nvml(0, FakeNvml(init=9))
    assert isinstance(found, Absent)
    assert "nvmlInit_v2 answers 9: Driver Not Loaded" in found.reason
    library = FakeNvml(gpus=1)
    found = find_nvml(1, library)
    assert isinstance(found, Absent)
    assert "GPU 1: Invalid Argument" in found.reason
    assert library.calls == ["nvmlShutdown"]


def test_the_gpu_that_cuda_sees_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from awq_edge.sensors.find import find_sensors

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    (reason,) = [one.reason for one in find_sensors(nvml=FakeNvml()).absent if one.name == "nvml"]
    assert reason.startswith("GPU 1:")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "nvml" in [one.name for one in find_sensors(nvml=FakeNvml()).present]
