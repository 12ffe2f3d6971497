"""Python, JetPack, GPU and driver, CUDA, power."""

from __future__ import annotations

import re
from collections.abc import Iterator

from awq_edge.device.jetson import read_board, read_jetpack_package, read_power_mode, read_release
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.report import DoctorRow
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.recipe import Recipe

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 10), (3, 13)
_ON_GPU = ("cuda", "tensorrt", "tensorrt-rtx")


def python(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """The versions that pyproject.toml allows and CI runs."""
    release = tuple(int(part) for part in re.findall(r"\d+", machine.python)[:2])
    fine = _OLDEST_PYTHON <= release <= _NEWEST_PYTHON
    yield DoctorRow(
        check="Python",
        status="ok" if fine else "warning",
        found=f"{machine.python}, {machine.system}",
        needed_for="" if fine else "all: 3.10 to 3.13 are tested",
        fix="" if fine else "python3.12 -m venv ENVIRONMENT",
    )


def jetpack(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """Of a Jetson, or where the recipe is for one."""
    release, wanted = read_release(machine.root), recipe.runtime.jetpack
    if release is None:
        if wanted is not None:
            yield DoctorRow(
                check="JetPack",
                status="missing",
                found="no /etc/nv_tegra_release: this is not a Jetson",
                needed_for="build, run",
                fix="awq-edge doctor --recipe NAME  # of this machine; build and run on the board",
            )
        return
    package = read_jetpack_package(machine.root)
    installed = f"JetPack {package}" if package else "nvidia-jetpack is not installed"
    found = f"{read_board(machine.root)}: Jetson Linux {release.release}, {installed}"
    if package is None:
        yield DoctorRow(
            check="JetPack", status="missing", found=found, needed_for="build, run",
            fix="sudo apt update && sudo apt install nvidia-jetpack",
        )  # fmt: skip
        return
    major = int(package.split(".")[0])
    if wanted is not None and int(wanted.split(".")[0]) != major:
        yield DoctorRow(
            check="JetPack",
            status="missing",
            found=f"{found}; recipe {recipe.name} is for {wanted}",
            needed_for="build, run",
            fix="flash the board with JetPack 6.2 or newer"
            if major < 6
            else "awq-edge export MODEL --recipe NAME  # "
            + ("one that ends in -jetpack6" if major == 6 else "one without -jetpack6"),
        )
        return
    yield DoctorRow(check="JetPack", status="ok", found=found)


def gpu(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """The GPU and its driver, and whether it is the recipe's."""
    needed = recipe.runtime.backend in _ON_GPU
    driver = _driver(machine)
    found = machine.gpu()
    if found is None:
        has_driver = "no driver" if driver is None else f"driver {driver}, which finds no GPU"
        yield DoctorRow(
            check="GPU and driver",
            status="missing" if needed else "optional",
            found=f"no NVIDIA GPU: {has_driver}",
            needed_for="run" if needed else "--runtime cuda, tensorrt",
            fix=_driver_fix(machine) if needed else "",
        )
        return
    capability = f"{found.compute_capability // 10}.{found.compute_capability % 10}"
    words = f"{found.name}, compute capability {capability}, {found.memory / 1e9:.1f} GB"
    words += f", driver {driver}" if driver else ""
    wanted = recipe.device.compute_capability
    if wanted is not None and wanted != capability:
        yield DoctorRow(
            check="GPU and driver",
            status="missing",
            found=f"{words}; recipe {recipe.name} is for {wanted}",
            needed_for="run",
            fix="awq-edge recipes  # and export for the one of this GPU",
        )
        return
    yield DoctorRow(check="GPU and driver", status="ok", found=words)


def cuda(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """What the driver supports against what the recipe's packages are made for; and a compiler."""
    wanted, found = recipe.runtime.cuda_version, machine.gpu()
    supported = None if found is None else found.cuda
    if supported is not None:
        old = wanted is not None and _release(supported)[:1] < _release(wanted)[:1]
        yield DoctorRow(
            check="CUDA, driver",
            status="missing" if old else "ok",
            found=f"up to {supported}" + (f"; recipe {recipe.name} needs {wanted}" if old else ""),
            needed_for="run" if old else "",
            fix=_driver_fix(machine) if old else "",
        )
    try:
        compiler, missing = machine.compiler(), ""
    except RuntimeUnavailableError as error:
        compiler, missing = "", str(error)
    needed = recipe.runtime.backend in _ON_GPU
    yield DoctorRow(
        check="CUDA, compiler",
        status="ok" if compiler else "optional",
        found=compiler or missing,
        needed_for="" if compiler else "build-plugins, where no kernel library is there",
        fix="" if compiler or not needed else _compiler_fix(machine),
    )


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
    governor = (machine.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "").strip()
    if governor:
        slow = governor == "powersave" and recipe.device.kind == "cpu"
        yield DoctorRow(
            check="CPU governor",
            status="warning" if slow else "ok",
            found=governor,
            needed_for="speed of run" if slow else "",
            fix="sudo cpupower frequency-set --governor performance" if slow else "",
        )


def _power_mode(machine: Machine, mode: str, recipe: Recipe) -> DoctorRow:
    known = {each.name: each for each in recipe.device.power_modes}
    found, fastest = known.get(mode), recipe.device.memory_bandwidth
    slow = found is not None and fastest is not None and found.memory_bandwidth < fastest
    words = mode
    if slow and found is not None and fastest is not None:
        words += (
            f": memory at {found.memory_bandwidth / 1e9:.0f} GB/s, "
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
    """The number of a mode differs by module and JetPack: 0 is 15W on an Orin Nano Super."""
    text = machine.read("etc/nvpmodel.conf") or ""
    numbers = {name: n for n, name in re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text)}
    for mode in recipe.device.power_modes:
        if mode.memory_bandwidth == recipe.device.memory_bandwidth and mode.name in numbers:
            return f"sudo nvpmodel -m {numbers[mode.name]} && sudo jetson_clocks  # {mode.name}"
    return "sudo nvpmodel -m N && sudo jetson_clocks  # N: the ID of MAXN in /etc/nvpmodel.conf"


def _driver(machine: Machine) -> str | None:
    """The version of the kernel's driver, or nvidia-smi's."""
    text = machine.read("proc/driver/nvidia/version") or ""
    match = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", text)
    if match:
        return match[1]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = (machine.run(query) or "").split()
    return lines[0] if lines else None


def _driver_fix(machine: Machine) -> str:
    if read_release(machine.root) is not None:
        return "sudo apt install nvidia-jetpack  # in a container: --runtime nvidia"
    return "sudo ubuntu-drivers install  # and reboot; in a container: --gpus all"


def _compiler_fix(machine: Machine) -> str:
    if read_release(machine.root) is not None:
        return "sudo apt install nvidia-jetpack && export PATH=/usr/local/cuda/bin:$PATH"
    return "pip install 'awq-edge[build]'"


def _supply(machine: Machine) -> str | None:
    """ "1" on mains, "0" on battery; None where the machine has no such thing."""
    folder = machine.root / "sys/class/power_supply"
    try:
        supplies = sorted(folder.iterdir())
    except OSError:
        return None
    found = []
    for supply in supplies:
        folder = supply.relative_to(machine.root)
        kind = (machine.read(str(folder / "type")) or "").strip()
        online = machine.read(str(folder / "online"))
        if online is not None and kind not in ("Battery", "UPS"):  # a mouse has a battery too
            found.append("0" if online.strip() == "0" else "1")
    return max(found, default=None)  # one port of several is enough


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
