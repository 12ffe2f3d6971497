"""The power mode of a Jetson, the supply of a laptop, the governor of a CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

from awq_edge.device.jetson import read_power_mode
from awq_edge.doctor import fixes
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.report import DoctorRow
from awq_edge.recipe.recipes import Recipe

_CPU = "sys/devices/system/cpu"
# Not cpupower, which few have.
_PERFORMANCE = f"sh -c 'echo performance | tee /{_CPU}/cpu*/cpufreq/scaling_governor'"
# Drivers whose "powersave" raises the clocks with the load: Linux, admin-guide/pm/{intel_pstate,
# amd-pstate}.rst. Of others it is the lowest clock.
_OWN_GOVERNORS = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
# Some modes begin with a reboot (AGX, Thor, 7W of an Orin Nano): clocks that are held before it are
# those of the old mode.
_AFTERWARDS = "it may ask for a reboot; jetson_clocks comes after it"


def power(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """The power mode of a Jetson, the supply of a laptop, the governor of a CPU."""
    mode = read_power_mode(machine.run)
    if mode is not None:
        yield _power_mode(machine, mode, recipe)
        return
    supply = _supply(machine)
    if supply is not None:
        plugged = supply == "1"
        yield DoctorRow(
            check="power",
            status="ok" if plugged else "warning",
            found="mains" if plugged else "battery: most laptops slow the GPU down",
            needed_for="" if plugged else "speed of run",
            fix="" if plugged else "plug it in",
        )
    governor = (machine.read(f"{_CPU}/cpu0/cpufreq/scaling_governor") or "").strip()
    if governor:
        driver = (machine.read(f"{_CPU}/cpu0/cpufreq/scaling_driver") or "").strip()
        slow = governor == "powersave" and driver not in _OWN_GOVERNORS
        slow = slow and recipe.device.kind == "cpu"
        yield DoctorRow(
            check="CPU governor",
            status="warning" if slow else "ok",
            found=governor,
            needed_for="speed of run" if slow else "",
            fix=fixes.on_host(machine, _PERFORMANCE) if slow else "",
        )


def _power_mode(machine: Machine, mode: str, recipe: Recipe) -> DoctorRow:
    known = {power_mode.name: power_mode for power_mode in recipe.device.power_modes}
    spec, fastest = known.get(mode), recipe.device.memory_bandwidth
    slow = spec is not None and fastest is not None and spec.memory_bandwidth < fastest
    words = mode
    if slow and spec is not None and fastest is not None:
        words += (
            f": memory at {spec.memory_bandwidth / 1e9:.0f} GB/s, "
            f"{fastest / 1e9:.0f} in the fastest mode"
        )
    return DoctorRow(
        check="power mode",
        status="warning" if slow else "ok",
        found=words,
        needed_for="speed of run" if slow else "",
        fix=_faster_mode(machine, recipe) if slow else "",
    )


def _faster_mode(machine: Machine, recipe: Recipe) -> str:
    """The command that sets a faster mode; its number differs by module and JetPack."""
    text = machine.read("etc/nvpmodel.conf") or ""
    numbers = {name: n for n, name in re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text)}
    for mode in recipe.device.power_modes:
        if mode.memory_bandwidth == recipe.device.memory_bandwidth and mode.name in numbers:
            command = fixes.on_host(machine, f"nvpmodel -m {numbers[mode.name]}")
            return f"{command}  # {mode.name}; {_AFTERWARDS}"
    command = fixes.on_host(machine, "nvpmodel -m N")
    return f"{command}  # N: the ID of MAXN in /etc/nvpmodel.conf; {_AFTERWARDS}"


def _supply(machine: Machine) -> str | None:
    """ "1" on mains, "0" on battery; None where the machine has no supply to read."""
    folder = machine.root / "sys/class/power_supply"
    try:
        supplies = sorted(folder.iterdir())
    except OSError:
        return None
    online_states = []
    for supply in supplies:
        folder = supply.relative_to(machine.root)
        kind = (machine.read(str(folder / "type")) or "").strip()
        online = machine.read(str(folder / "online"))
        if online is not None and kind not in ("Battery", "UPS"):  # a mouse has a battery too
            online_states.append("0" if online.strip() == "0" else "1")
    return max(online_states, default=None)  # one port of several is enough
