"""TensorRT, what drives CUDA, our libraries, and the extras."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from awq_edge.device.jetson import read_release
from awq_edge.doctor.machine import Machine
from awq_edge.doctor.report import DoctorRow
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.extras import EXTRAS_OF_STEPS, packages_of_extras
from awq_edge.plugin.build import PLUGIN_FILE_NAME
from awq_edge.recipe import Recipe

# Python module of a runtime, the distribution that has it, and the extra.
_TENSORRT = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx"),
}
_ON_TENSORRT = tuple(_TENSORRT)
_LAYERS = (
    ("cuda-python", "cuda-bindings", "cuda.bindings"),
    ("pycuda", "pycuda", "pycuda"),
)
_HOW_TO_GET = "build it on this machine with `awq-edge build-plugins`"


def tensorrt(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """Both kinds, and the version of the recipe's against what it wants."""
    for backend, (module, distribution) in _TENSORRT.items():
        needed = recipe.runtime.backend == backend
        version = machine.version(distribution) or machine.version(module)
        there = version is not None or machine.has_module(module)
        name = "TensorRT" if backend == "tensorrt" else "TensorRT for RTX"
        if not there:
            yield DoctorRow(
                check=name,
                status="missing" if needed else "optional",
                found="not installed",
                needed_for="build, run" if needed else f"recipes with runtime {backend}",
                fix=_tensorrt_fix(machine, backend) if needed else "",
            )
            continue
        wanted = recipe.runtime.version
        old = needed and version is not None and _release(version) < _release(wanted)
        yield DoctorRow(
            check=name,
            status="missing" if old else "ok",
            found=(version or "installed, version not told")
            + (f"; recipe {recipe.name} wants {wanted}" if old else ""),
            needed_for="build, run" if old else "",
            fix=_tensorrt_fix(machine, backend) if old else "",
        )


def device_layer(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """cuda-python or PyCUDA: TensorRT's session drives CUDA with one of them."""
    needed = recipe.runtime.backend in _ON_TENSORRT
    found = [
        f"{name} {machine.version(distribution) or ''}".strip()
        for name, distribution, module in _LAYERS
        if machine.has_module(module)
    ]
    extra = "jetson" if read_release(machine.root) is not None else "rtx"
    yield DoctorRow(
        check="CUDA from Python",
        status="ok" if found else "missing" if needed else "optional",
        found=", ".join(found) or "neither cuda-python nor pycuda",
        needed_for="" if found else "run" if needed else "recipes with TensorRT",
        fix="" if found or not needed else f"pip install 'awq-edge[{extra}]'",
    )


def plugin_libraries(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """The kernels, which are loaded to see that they run here, and the C++ plugin beside them."""
    backend = recipe.runtime.backend
    needed = backend == "cuda" or (
        backend in _ON_TENSORRT and "plugin" in (recipe.export.linear, recipe.export.attention)
    )
    try:
        library = machine.kernels()
    except RuntimeUnavailableError as error:
        yield DoctorRow(
            check="kernel library",
            status="missing" if needed else "optional",
            found=str(error).removesuffix(f"; {_HOW_TO_GET}"),
            needed_for="build, run" if needed else "--runtime cuda, TensorRT's plugin",
            fix="awq-edge build-plugins" if needed else "",
        )
        return
    built = ", ".join(f"{each // 10}.{each % 10}" for each in library.architectures)
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


def extras(machine: Machine, recipe: Recipe) -> Iterator[DoctorRow]:
    """Each extra: what of it is installed, and which step it is for."""
    known = packages_of_extras(machine.requirements())
    if not known:
        yield DoctorRow(
            check="extras", status="warning", found="awq-edge is run from its sources",
            needed_for="pip's extras", fix="pip install -c constraints.txt -e .",
        )  # fmt: skip
    for extra, steps in EXTRAS_OF_STEPS.items():
        packages = known.get(extra, ())
        if not packages:
            continue
        missing = [package for package in packages if machine.version(package) is None]
        whole = not missing
        needed = extra == recipe.runtime.backend  # torch executes what the cuda runtime does
        yield DoctorRow(
            check=f"extra [{extra}]",
            status="ok" if whole else "missing" if needed else "optional",
            found="installed" if whole else f"not installed: {', '.join(missing)}",
            needed_for="" if whole else steps,
            fix="" if whole else f"pip install 'awq-edge[{extra}]'",
        )


def _tensorrt_fix(machine: Machine, backend: str) -> str:
    if backend == "tensorrt-rtx":
        return "pip install --upgrade 'awq-edge[rtx]'"
    if read_release(machine.root) is None:
        return "awq-edge export MODEL --recipe NAME  # of this machine: TensorRT is JetPack's"
    if sys.prefix != sys.base_prefix:
        return (
            "sudo apt install nvidia-jetpack && python3 -m venv --system-site-packages ENVIRONMENT"
        )
    return "sudo apt install nvidia-jetpack"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
