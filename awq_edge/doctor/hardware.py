"""Python, JetPack, GPU and driver, CUDA."""

from __future__ import annotations

import re
from collections.abc import Iterator

from awq_edge.device.jetson import JetPack, read_board, read_jetpack_package, read_release
from awq_edge.doctor import fixes
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.report import DoctorRow
from awq_edge.doctor.setting import in_container, jetpack, on_jetson, pci_gpus, wsl
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.kernels.architectures import OLDEST, dotted
from awq_edge.recipe.recipes import Recipe
from awq_edge.units import release, size_text

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 10), (3, 13)
_OLDEST_JETPACK = 6  # that a recipe is for


def python(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """Python's version against those that pyproject.toml allows and CI runs."""
    facts = machine.python
    fine = _OLDEST_PYTHON <= release(facts.version) <= _NEWEST_PYTHON
    yield DoctorRow(
        check="Python",
        status="ok" if fine else "warning",
        found=f"{facts.version}, {machine.system} ({facts.executable})",
        needed_for="" if fine else "all: 3.10 to 3.13 are tested",
        fix="" if fine else fixes.python(machine),
    )


def jetpack_release(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """JetPack's release, on a Jetson or where the recipe is for one."""
    wanted = recipe.runtime.jetpack
    if not on_jetson(machine):
        if wanted is not None:
            yield DoctorRow(
                check="JetPack",
                status="missing",
                found="this is not a Jetson",
                needed_for="build, run",
                fix=f"awq-edge export MODEL --recipe {recipe.name}  # here; build and run: on the "
                "board",
            )
        return
    release, installed = read_release(machine.root), jetpack(machine)
    if release is None:
        yield DoctorRow(
            check="JetPack", status="optional",
            found="a Jetson whose /etc/nv_tegra_release this container does not show",
            needed_for="to compare JetPack",
        )  # fmt: skip
        return
    words = f"{read_board(machine.root) or 'a Jetson'}: Jetson Linux {release.release}, "
    package = None if in_container(machine) else read_jetpack_package(machine.root)
    known = f"JetPack {installed.version}" if installed is not None else "JetPack not known"
    words += (
        f"JetPack {package}"
        if package
        else f"of {known}"
        + (" (of the host)" if in_container(machine) else ", nvidia-jetpack is not installed")
    )
    yield _jetpack(machine, recipe, installed, words, has_package=package is not None)


def _jetpack(
    machine: Machine, recipe: Recipe, installed: JetPack | None, words: str, *, has_package: bool
) -> DoctorRow:
    """The installed packages against those that the recipe is for."""
    wanted = recipe.runtime.jetpack

    needed = recipe.runtime.record.on_gpu

    def lacking(words: str, fix: str) -> DoctorRow:
        return DoctorRow(
            check="JetPack",
            status="missing" if needed else "optional",
            found=words,
            needed_for="build, run" if needed else "recipes of Jetsons",
            fix=fix if needed else "",
        )

    of_recipe = f"{words}; recipe {recipe.name} is for {wanted}"
    if installed is not None and installed.major < _OLDEST_JETPACK:
        return lacking(
            f"{words}; the oldest that a recipe is for is 6.1",
            fixes.newer_jetpack(machine, installed),
        )
    if installed is not None and wanted is not None:
        if installed.major != release(wanted)[0]:
            return lacking(of_recipe, fixes.other_jetpack(recipe))
        if release(installed.tensorrt) < release(recipe.runtime.version):
            return lacking(
                f"{of_recipe}, whose TensorRT is {recipe.runtime.version} and not "
                f"{installed.tensorrt}",
                fixes.newer_jetpack(machine, installed),
            )
    engine = recipe.runtime.record.engine
    is_jetpacks = engine is not None and not engine.ahead_of_time
    has_tensorrt = not is_jetpacks or machine.has_module("tensorrt")
    if not has_package and not has_tensorrt and not in_container(machine):
        return lacking(words, fixes.jetson_packages(machine))
    return DoctorRow(check="JetPack", status="ok", found=words)


def gpu(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """The GPU and its driver, compared with the recipe's."""
    needed = recipe.runtime.record.on_gpu
    driver = _driver(machine)
    device = machine.gpu()
    if device is None:
        yield DoctorRow(
            check="GPU and driver",
            status="missing" if needed else "optional",
            found=_no_gpu(machine, driver),
            needed_for="run" if needed else "--runtime cuda, tensorrt",
            fix=_gpu_fix(machine, recipe) if needed else "",
        )
        return
    capability = f"{device.compute_capability // 10}.{device.compute_capability % 10}"
    words = f"{device.name}, compute capability {capability}, {size_text(device.memory)}"
    words += f", driver {driver}" if driver else ""
    wanted = recipe.device.compute_capability
    if wanted is not None and wanted != capability:
        yield DoctorRow(
            check="GPU and driver",
            status="missing",
            found=f"{words}; recipe {recipe.name} is for {wanted}",
            needed_for="run",
            fix="awq-edge recipes  # and export for the one of this GPU"
            if device.compute_capability >= OLDEST
            else f"--recipe cpu: the kernels need compute capability {dotted(OLDEST)} or newer",
        )
        return
    yield DoctorRow(check="GPU and driver", status="ok", found=words)


def _gpu_fix(machine: Machine, recipe: Recipe) -> str:
    if recipe.device.kind == "jetson" and not on_jetson(machine):
        return fixes.on_board(recipe)
    return fixes.driver(machine)


def _no_gpu(machine: Machine, driver: str | None) -> str:
    """The reason why CUDA finds no GPU."""
    words = "no driver" if driver is None else f"driver {driver}, which finds no GPU"
    status = machine.cuda_status()
    if status:
        words += f" (cuInit answers {status})"
    on_bus = [
        f"{gpu.slot} with {gpu.driver or 'no driver'}{', asleep' if gpu.asleep else ''}"
        for gpu in pci_gpus(machine)
    ]
    if on_bus:
        words += f"; on the PCI bus: {', '.join(on_bus)}"
    if wsl(machine) is not None:
        words += f"; WSL {wsl(machine)}"
    elif in_container(machine):
        words += "; in a container"
    return f"no NVIDIA GPU: {words}"


def cuda(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """The driver's CUDA against that of the recipe's packages; and a compiler."""
    wanted, device = recipe.runtime.cuda_version, machine.gpu()
    supported = None if device is None else device.cuda
    if supported is not None:
        old = wanted is not None and release(supported)[:1] < release(wanted)[:1]
        yield DoctorRow(
            check="CUDA, driver",
            status="missing" if old else "ok",
            found=f"up to {supported}" + (f"; recipe {recipe.name} needs {wanted}" if old else ""),
            needed_for="run" if old else "",
            fix=fixes.newer_cuda(machine, recipe) if old else "",
        )
    try:
        compiler, missing = machine.compiler(), ""
    except RuntimeUnavailableError as error:
        compiler, missing = "", str(error)
    needed = recipe.runtime.record.on_gpu
    yield DoctorRow(
        check="CUDA, compiler",
        status="ok" if compiler else "optional",
        found=compiler or (f"not here: {', '.join(machine.missing_tools())}" or missing),
        needed_for="" if compiler else "build-plugins, where no kernel library is there",
        fix="" if compiler or not needed else fixes.compiler(machine, machine.missing_tools()),
    )


def _driver(machine: Machine) -> str | None:
    """The version of the kernel's driver, or nvidia-smi's."""
    text = machine.read("proc/driver/nvidia/version") or ""
    match = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", text)
    if match:
        return match[1]
    query = ["--query-gpu=driver_version", "--format=csv,noheader"]
    for program in ("nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi"):
        lines = (machine.run([program, *query]) or "").split()
        if lines and re.fullmatch(r"[\d.]+", lines[0]):
            return lines[0]
    return None
