"""RAPL, CPU clocks, a Jetson's clocks and power modes on made-up trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.sensors.cpu_clocks import CpuClocks, find_cpu_clocks
from awq_edge.sensors.find import find_sensors
from awq_edge.sensors.power_mode import PowerModes, read_power_modes
from awq_edge.sensors.rapl import RaplSensor, find_rapl
from awq_edge.sensors.reading import Absent
from awq_edge.sensors.tegra_clocks import TegraClocks, find_tegra_clocks

from .fake_nvml import FakeNvml
from .sysfs import write_tree

RAPL = "sys/class/powercap/intel-rapl:"
CPU = "sys/devices/system/cpu/cpu"
RAPL_TREE: dict[str, object] = {
    f"{RAPL}0/name": "package-0",
    f"{RAPL}0/energy_uj": 900,
    f"{RAPL}0/max_energy_range_uj": 999,
    f"{RAPL}0:0/name": "core",
    f"{RAPL}0:0/energy_uj": 5,
    f"{RAPL}1/name": "package-1",
    f"{RAPL}1/energy_uj": 100,
    f"{RAPL}1/max_energy_range_uj": 999,
    f"{RAPL}2/name": "psys",
    f"{RAPL}2/energy_uj": 7,
}


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    sensor = find_rapl(write_tree(tmp_path, RAPL_TREE))
    assert isinstance(sensor, RaplSensor)
    assert "package-0, package-1" in sensor.covers
    assert sensor.read().energy == 0.0
    write_tree(tmp_path, {f"{RAPL}0/energy_uj": 50, f"{RAPL}1/energy_uj": 300})
    # 900 up to 999, one more to 0, 50 more; and 200.
    assert sensor.read().energy == pytest.approx((150 + 200) / 1e6)
    (tmp_path / f"{RAPL}1/energy_uj").unlink()
    assert sensor.read().energy is None


def test_rapl_that_only_root_may_read(tmp_path: Path) -> None:
    write_tree(tmp_path, RAPL_TREE)
    # What root would not be refused: an entry that cannot be read.
    (tmp_path / f"{RAPL}0/energy_uj").unlink()
    (tmp_path / f"{RAPL}0/energy_uj").mkdir()
    sensor = find_rapl(tmp_path)
    assert isinstance(sensor, Absent)
    assert "energy_uj cannot be read" in sensor.reason


def test_cpu_clocks_and_throttle_counts(tmp_path: Path) -> None:
    tree = {
        f"{CPU}0/cpufreq/scaling_cur_freq": 2_000_000,
        f"{CPU}1/cpufreq/scaling_cur_freq": 1_500_000,
        f"{CPU}0/thermal_throttle/core_throttle_count": 3,
        f"{CPU}1/thermal_throttle/core_throttle_count": 4,
        f"{CPU}freq/boost": 1,  # not a core
    }
    sensor = find_cpu_clocks(write_tree(tmp_path, tree))
    assert isinstance(sensor, CpuClocks)
    reading = sensor.read()
    assert reading.clocks == {
        "cpu, fastest core": 2_000_000_000,
        "cpu, slowest core": 1_500_000_000,
    }
    assert reading.throttle_counts == {"core throttle count": 7}


def test_a_jetsons_clocks_alerts_and_events(tmp_path: Path) -> None:
    tree: dict[str, object] = {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081",
        "sys/class/devfreq/17000000.gpu/cur_freq": 1_020_000_000,
        "sys/class/devfreq/15340000.vic/cur_freq": 5,
        "sys/kernel/debug/bpmp/debug/clk/emc/rate": 3_199_000_000,
        "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert",
        "sys/class/thermal/cooling_device1/cur_state": 0,
        "sys/class/thermal/cooling_device2/type": "pwm-fan",
        "sys/class/thermal/cooling_device2/cur_state": 3,
        "sys/class/hwmon/hwmon4/oc1_event_cnt": 2,
    }
    sensor = find_tegra_clocks(write_tree(tmp_path, tree))
    assert isinstance(sensor, TegraClocks)
    reading = sensor.read()
    assert reading.clocks == {"gpu": 1_020_000_000, "memory": 3_199_000_000}
    assert reading.throttled == ()
    assert reading.throttle_counts == {"OC1 events": 2}
    write_tree(tmp_path, {"sys/class/thermal/cooling_device1/cur_state": 1})
    assert sensor.read().throttled == ("gpu-throttle-alert",)


def test_a_jetson_without_root_has_no_memory_clock(tmp_path: Path) -> None:
    tree = {
        "proc/device-tree/compatible": "nvidia,p3768\0nvidia,tegra234",
        "sys/class/devfreq/17000000.ga10b/cur_freq": 306_000_000,
    }
    sensor = find_tegra_clocks(write_tree(tmp_path, tree))
    assert isinstance(sensor, TegraClocks)
    assert sensor.read().clocks == {"gpu": 306_000_000}
    (tmp_path / "sys/class/devfreq/17000000.ga10b/cur_freq").unlink()
    assert sensor.read().clocks == {}
    gone = find_tegra_clocks(tmp_path)
    assert isinstance(gone, Absent) and "can be read" in gone.reason


def test_nothing_at_all(tmp_path: Path) -> None:
    """A machine without any sensor: a reason for each, and nothing else."""
    sensors = find_sensors(tmp_path, nvml=FakeNvml(init=9))
    assert sensors.present == ()
    assert [one.name for one in sensors.absent] == ["nvml", "ina3221", "rapl", "tegra", "cpu"]
    assert all(one.reason for one in sensors.absent)
    sensors.close()


def test_power_modes(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"{CPU}0/cpufreq/scaling_governor": "schedutil"})
    asked: list[list[str]] = []

    def said(command: object) -> str:
        asked.append(list(command))  # type: ignore[call-overload]
        return "NV Power Mode: MAXN_SUPER\n2\n"

    modes = read_power_modes(tmp_path, said)
    assert modes == PowerModes("MAXN_SUPER", "schedutil")
    assert str(modes) == "nvpmodel MAXN_SUPER, governor schedutil"
    assert asked == [["nvpmodel", "-q"]]
    assert read_power_modes(tmp_path / "none", lambda command: None) == PowerModes(None, None)
    assert str(PowerModes(None, None)) == "unknown"
