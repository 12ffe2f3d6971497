"""Power of a Jetson from both layouts of /sys, on made-up trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.sensors.ina3221 import Ina3221Sensor, find_ina3221
from awq_edge.sensors.reading import Absent

from .sysfs import write_tree

HWMON = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
SECOND = "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon2"
IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
# Orin Nano and NX, JetPack 5 and 6: one chip, the input first. hwmon's channels 4 and 7 are sums.
ORIN_NANO: dict[str, object] = {
    f"{HWMON}/in1_label": "VDD_IN",
    f"{HWMON}/in1_input": 5000,
    f"{HWMON}/curr1_input": 1200,
    f"{HWMON}/in2_label": "VDD_CPU_GPU_CV",
    f"{HWMON}/in2_input": 5000,
    f"{HWMON}/curr2_input": 400,
    f"{HWMON}/in3_label": "VDD_SOC",
    f"{HWMON}/in3_input": 5000,
    f"{HWMON}/curr3_input": 300,
    f"{HWMON}/in7_label": "sum of shunt voltages",
    f"{HWMON}/in7_input": 77,
    f"{HWMON}/curr4_input": 1900,
}


def found(root: Path) -> Ina3221Sensor:
    sensor = find_ina3221(root)
    assert isinstance(sensor, Ina3221Sensor), sensor
    return sensor


def test_the_input_rail_alone_where_there_is_one(tmp_path: Path) -> None:
    sensor = found(write_tree(tmp_path, ORIN_NANO))
    assert sensor.read().power == pytest.approx(5.0 * 1.2)
    assert sensor.covers == "the whole board (VDD_IN)"


def test_rails_are_added_where_none_is_the_input(tmp_path: Path) -> None:
    """AGX Orin: two chips, unused channels named NC or switched off."""
    tree: dict[str, object] = {
        f"{HWMON}/in1_label": "VDD_GPU_SOC",
        f"{HWMON}/in1_input": 20000,
        f"{HWMON}/curr1_input": 250,
        f"{HWMON}/in2_label": "VDD_CPU_CV",
        f"{HWMON}/in2_input": 20000,
        f"{HWMON}/curr2_input": 100,
        f"{HWMON}/in3_label": "VIN_SYS_5V0",
        f"{HWMON}/in3_input": 5000,
        f"{HWMON}/curr3_input": 600,
        f"{SECOND}/in1_label": "NC",
        f"{SECOND}/in1_input": 1,
        f"{SECOND}/curr1_input": 1,
        f"{SECOND}/in2_label": "OFF",
        f"{SECOND}/in2_enable": 0,
        f"{SECOND}/in2_input": 1,
        f"{SECOND}/curr2_input": 1,
    }
    sensor = found(write_tree(tmp_path, tree))
    assert sensor.read().power == pytest.approx(5.0 + 2.0 + 3.0)
    assert sensor.covers == "the rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"


def test_the_input_monitor_of_a_thor(tmp_path: Path) -> None:
    """JetPack 7: an INA238, which gives microwatts, beside the INA3221."""
    tree = {
        f"{HWMON}/in1_label": "VDD_GPU",
        f"{HWMON}/in1_input": 20000,
        f"{HWMON}/curr1_input": 250,
        "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon3/power1_input": 31_500_000,
    }
    sensor = found(write_tree(tmp_path, tree))
    assert sensor.read().power == pytest.approx(31.5)
    assert sensor.covers == "the whole board (VIN)"


def test_the_iio_layout(tmp_path: Path) -> None:
    tree = {
        f"{IIO}/rail_name_0": "POM_5V_IN",
        f"{IIO}/in_power0_input": 4321,
        f"{IIO}/rail_name_1": "POM_5V_GPU",
        f"{IIO}/in_power1_input": 1000,
    }
    sensor = found(write_tree(tmp_path, tree))
    assert sensor.read().power == pytest.approx(4.321)


def test_a_rail_that_stops_answering_makes_the_total_unknown(tmp_path: Path) -> None:
    write_tree(tmp_path, ORIN_NANO)
    (tmp_path / HWMON / "in1_label").write_text("VDD_OTHER\n")  # no input: three rails are added
    sensor = found(tmp_path)
    assert sensor.read().power == pytest.approx(5.0 * 1.9)
    (tmp_path / HWMON / "curr3_input").unlink()
    assert sensor.read().power is None


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({}, "not a Jetson"),
        ({"sys/bus/i2c/drivers/ina3221/bind": ""}, "no rail with a name"),
        ({f"{IIO}/in_power0_input": 5}, "no rail with a name"),
    ],
)
def test_absence_has_a_reason(tmp_path: Path, tree: dict[str, object], reason: str) -> None:
    sensor = find_ina3221(write_tree(tmp_path, tree))
    assert isinstance(sensor, Absent)
    assert reason in sensor.reason
