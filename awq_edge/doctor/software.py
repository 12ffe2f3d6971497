"""TensorRT, the device layer, our libraries, and the extras."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from awq_edge.device.jetson import read_package
from awq_edge.doctor import fixes
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.report import DoctorRow
from awq_edge.doctor.setting import cuda_major, in_container, jetpack, on_jetson
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.extras import EXTRAS_OF_STEPS, packages_of_extras
from awq_edge.kernels.build import PLUGIN_FILE_NAME
from awq_edge.recipe.recipes import Recipe
from awq_edge.recipe.runtimes import runtimes
from awq_edge.units import release

_LAYERS = (
    ("cuda-python", "cuda-bindings", "cuda.bindings"),
    ("pycuda", "pycuda", "pycuda"),
)
_HOW_TO_GET = "build it on this machine with `awq-edge build-plugins`"


def tensorrt(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """Both kinds of TensorRT; the version of the recipe's kind against the recipe's."""
    for backend, runtime in sorted(runtimes().items()):
        engine = runtime.engine
        if engine is None:
            continue
        needed, name = recipe.runtime.backend == backend, engine.title
        version = machine.version(engine.distribution) or machine.version(engine.module)
        there = version is not None or machine.has_module(engine.module)
        if not there:
            yield DoctorRow(
                check=name,
                status="missing" if needed else "optional",
                found="not installed",
                needed_for="build, run" if needed else f"recipes with runtime {backend}",
                fix=_tensorrt_fix(machine, recipe) if needed else "",
            )
            continue
        wanted = recipe.runtime.version
        old = needed and version is not None and release(version) < release(wanted)
        is_jetpacks = needed and not engine.ahead_of_time and on_jetson(machine)
        hiding = is_jetpacks and _is_pips(machine)
        yield DoctorRow(
            check=name,
            status="missing" if old or hiding else "ok",
            found=(version or "installed, version not told")
            + (f"; recipe {recipe.name} wants {wanted}" if old else "")
            + ("; it is pip's, for other GPUs, and hides JetPack's" if hiding else ""),
            needed_for="build, run" if old or hiding else "",
            fix=_tensorrt_fix(machine, recipe, old=old) if old or hiding else "",
        )


def device_layer(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """cuda-python or PyCUDA, one of which TensorRT's session needs. cuda-python's major version is
    CUDA's: one that is newer than the driver's CUDA does not start."""
    needed = recipe.runtime.record.engine is not None
    supported = cuda_major(machine, None)
    packages, usable = [], False
    for name, distribution, module in _LAYERS:
        if not machine.has_module(module):
            continue
        version = machine.version(distribution) or ""
        major = re.match(r"\d+", version) if name == "cuda-python" else None
        newer = supported is not None and major is not None and int(major[0]) > supported
        usable |= not newer
        words = f"{name} {version}".strip()
        packages.append(f"{words}, and the driver's CUDA is {supported}" if newer else words)
    fixed = usable or not needed
    yield DoctorRow(
        check="CUDA from Python",
        status="ok" if usable else "missing" if needed else "optional",
        found=", ".join(packages) or "neither cuda-python nor pycuda",
        needed_for="" if usable else "run" if needed else "recipes with TensorRT",
        fix="" if fixed else _device_layer_fix(machine, recipe),
    )


def _device_layer_fix(machine: Machine, recipe: Recipe) -> str:
    if recipe.device.kind == "jetson" and not on_jetson(machine):
        return fixes.on_board(recipe)
    if fixes.is_before_orin_s_jetpack(machine):
        return fixes.newer_jetpack(machine, jetpack(machine))
    wanted, supported = recipe.runtime.cuda_version, cuda_major(machine, None)
    if wanted and supported and supported < release(wanted)[0]:
        return fixes.newer_cuda(machine, recipe)
    if on_jetson(machine) and not in_container(machine) and not machine.python.is_systems:
        return fixes.jetson_python(machine, recipe)  # it has to see TensorRT too
    return fixes.pip(machine, *fixes.device_layer_packages(machine, recipe))


def plugin_libraries(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """The kernel library, loaded to see that it runs here, and the C++ plugin beside it."""
    runtime, export = recipe.runtime.record, recipe.export
    replaced = runtime.native is not None and "plugin" not in (export.linear, export.attention)
    needed = runtime.uses_kernels and not replaced
    try:
        library = machine.kernels()
    except RuntimeUnavailableError as error:
        yield DoctorRow(
            check="kernel library",
            status="missing" if needed else "optional",
            found=str(error).removesuffix(f"; {_HOW_TO_GET}"),
            needed_for="build, run" if needed else "--runtime cuda, TensorRT's plugin",
            fix=_kernels_fix(machine, recipe) if needed else "",
        )
        return
    built = ", ".join(
        f"{capability // 10}.{capability % 10}" for capability in library.architectures
    )
    yield DoctorRow(
        check="kernel library", status="ok", found=f"{library.path}, for compute capability {built}"
    )
    plugin = Path(library.path).with_name(PLUGIN_FILE_NAME)
    yield DoctorRow(
        check="C++ plugin",
        status="ok" if plugin.is_file() else "optional",
        found=str(plugin) if plugin.is_file() else "not built; the Python plugin does the same",
        needed_for="" if plugin.is_file() else "trtexec and C++ hosts",
    )


def _kernels_fix(machine: Machine, recipe: Recipe) -> str:
    """The command that builds the kernels, for the recipe's GPU where this machine has none."""
    if recipe.device.kind == "jetson" and not on_jetson(machine):
        return fixes.on_board(recipe)
    if fixes.is_before_orin_s_jetpack(machine):
        return fixes.newer_jetpack(machine, jetpack(machine))
    missing = machine.missing_tools()
    wanted = recipe.device.compute_capability
    build = "awq-edge build-plugins"
    if machine.gpu() is None and wanted is not None:
        build += f" --arch {wanted}"
    if "nvcc" in missing and on_jetson(machine) and in_container(machine):
        return fixes.jetson_packages(machine)
    return fixes.sequence(fixes.compiler(machine, missing), build) if missing else build


def extras(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """Each extra: its installed packages, and the step that needs it."""
    known = packages_of_extras(machine.requirements())
    if not known:
        yield DoctorRow(
            check="extras", status="warning", found="awq-edge is run from its sources",
            needed_for="pip's extras",
            fix=fixes.pip(machine, "-c", "constraints.txt", "-e", ".") + "  # in the checkout",
        )  # fmt: skip
    for extra, steps in EXTRAS_OF_STEPS.items():
        packages = known.get(extra, ())
        if not packages or extra in _of_another_machine(machine):
            continue
        missing = [package for package in packages if machine.version(package) is None]
        whole = not missing
        needed = extra == recipe.runtime.record.extra
        yield DoctorRow(
            check=f"extra [{extra}]",
            status="ok" if whole else "missing" if needed else "optional",
            found="installed" if whole else f"not installed: {', '.join(missing)}",
            needed_for="" if whole else steps,
            fix="" if whole else _extra_fix(machine, recipe, extra),
        )


def _of_another_machine(machine: Machine) -> tuple[str, ...]:
    """Extras whose wheels are of no use here: a Jetson has JetPack's compiler, and no TensorRT for
    RTX; RTX's in turn is for x86-64 alone."""
    if on_jetson(machine):
        return ("rtx", "build")
    return ("jetson",) if machine.system.endswith("x86_64") else ("jetson", "rtx")


def _extra_fix(machine: Machine, recipe: Recipe, extra: str) -> str:
    if extra == "cuda":
        return fixes.torch(machine)
    if extra == "jetson":
        return _device_layer_fix(machine, recipe)
    return fixes.pip(machine, f"awq-edge[{extra}]")


def _tensorrt_fix(machine: Machine, recipe: Recipe, *, old: bool = False) -> str:
    engine = recipe.runtime.record.engine
    if engine is not None and engine.ahead_of_time:
        if not machine.system.endswith("x86_64"):
            return "run it on an x86-64 machine: TensorRT for RTX has no wheel for this one"
        return fixes.pip(machine, "--upgrade", "awq-edge[rtx]")
    if not on_jetson(machine):
        return f"{fixes.on_board(recipe)}: TensorRT is JetPack's"
    if fixes.is_before_orin_s_jetpack(machine):
        return fixes.newer_jetpack(machine, jetpack(machine))
    if in_container(machine):
        return fixes.jetson_packages(machine)
    if _is_pips(machine) and machine.python.is_systems:
        return fixes.pip_uninstall(machine, "tensorrt")
    if old:
        return fixes.newer_jetpack(machine, jetpack(machine))
    if not _has_jetpacks(machine):
        steps = fixes.jetson_packages(machine)
        if machine.python.is_systems:
            return steps
        return fixes.sequence(steps, fixes.jetson_python(machine, recipe))
    return fixes.jetson_python(machine, recipe)


def _has_jetpacks(machine: Machine) -> bool:
    """True if the system's Python has JetPack's TensorRT, which other Pythons do not see."""
    places = (machine.root / "usr/lib").glob("python3*/dist-packages/tensorrt")
    return any(True for _ in places)


def _is_pips(machine: Machine) -> bool:
    """True if a wheel of TensorRT, which is for other GPUs, shadows JetPack's."""
    version = machine.version("tensorrt")
    system = read_package("libnvinfer10", machine.root) or read_package("libnvinfer8", machine.root)
    return version is not None and system is not None and release(version) != release(system)
