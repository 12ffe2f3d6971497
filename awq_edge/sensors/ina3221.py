"""The power monitors of a Jetson: INA3221, and the INA238 of a Jetson Thor's input.

Two layouts of /sys, by the kernel:

    hwmon (JetPack 5, 6, 7; mainline's drivers ina3221 and ina2xx/ina238)
        /sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/{in1_label,in1_input,curr1_input}
        in: mV, curr: mA; ina238 has power1_input in uW
    iio (JetPack 4, and 5 images with its driver ina3221x)
        /sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/{rail_name_0,in_power0_input}
        power: mW

Source: Linux, Documentation/hwmon/ina3221.rst; NVIDIA, Jetson Linux Developer Guide, Power Monitor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from awq_edge.device.system_files import read_int, read_text
from awq_edge.sensors.reading import Absent, Reading, SysfsSensor

NAME = "ina3221"
_DRIVERS = Path("sys/bus/i2c/drivers")
_HWMON_DRIVERS = ("ina3221", "ina238", "ina2xx")
_IIO_DRIVER = "ina3221x"
# Rails through which a whole module or board is fed, by board.
_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN", "5V_IN")
_CHANNELS = (1, 2, 3)  # hwmon's 4 to 7 are shunts and sums of these
_UNUSED = ("", "NC", "N/A")


@dataclass(frozen=True)
class Rail:
    """One measured rail: files whose product, or whose one value, times scale is watts."""

    name: str
    files: tuple[Path, ...]
    scale: float

    def watts(self) -> float | None:
        """Power now; None where the chip does not answer."""
        product = self.scale
        for file in self.files:
            value = read_int(file)
            if value is None:
                return None
            product *= value
        return product


class Ina3221Sensor(SysfsSensor):
    """Power of a Jetson: of its input rail, or the sum of all rails where none is the input."""

    name = NAME

    def __init__(self, rails: tuple[Rail, ...]) -> None:
        inputs = [rail for name in _INPUTS for rail in rails if rail.name == name]
        self._rails = tuple(inputs[:1]) or rails
        names = " + ".join(rail.name for rail in self._rails)
        self.covers = f"the whole board ({names})" if inputs else f"the rails {names}"

    def read(self) -> Reading:
        """Watts now; None where one of the rails does not answer: a part is no total."""
        watts = [rail.watts() for rail in self._rails]
        known = [value for value in watts if value is not None]
        return Reading(power=sum(known) if len(known) == len(watts) else None)


def find_ina3221(root: Path = Path("/")) -> Ina3221Sensor | Absent:
    """The monitors under root/sys."""
    drivers = root / _DRIVERS
    rails = tuple(_hwmon_rails(drivers)) or tuple(_iio_rails(drivers))
    if rails:
        return Ina3221Sensor(rails)
    names = (*_HWMON_DRIVERS, _IIO_DRIVER)
    if not any((drivers / name).is_dir() for name in names):
        return Absent(NAME, "no INA3221 driver in /sys/bus/i2c/drivers: not a Jetson")
    return Absent(NAME, "its driver is there, but no rail with a name can be read")


def _hwmon_rails(drivers: Path) -> Iterator[Rail]:
    for driver in _HWMON_DRIVERS:
        for chip in sorted((drivers / driver).glob("*/hwmon/hwmon*")):
            if read_int(chip / "power1_input") is not None:
                name = read_text(chip / "power1_label") or read_text(chip / "in1_label") or "VIN"
                yield Rail(name, (chip / "power1_input",), 1e-6)
                continue
            for channel in _CHANNELS:
                # An unused channel has enable 0, or no name.
                if read_text(chip / f"in{channel}_enable") == "0":
                    continue
                files = (chip / f"in{channel}_input", chip / f"curr{channel}_input")
                name = read_text(chip / f"in{channel}_label") or ""
                if name not in _UNUSED and all(file.exists() for file in files):
                    yield Rail(name, files, 1e-6)  # mV * mA


def _iio_rails(drivers: Path) -> Iterator[Rail]:
    for chip in sorted((drivers / _IIO_DRIVER).glob("*/iio*device*")):
        for file in sorted(chip.glob("in_power?_input")):
            number = file.name.removeprefix("in_power").removesuffix("_input")
            name = read_text(chip / f"rail_name_{number}") or ""
            if name not in _UNUSED:
                yield Rail(name, (file,), 1e-3)
