"""What the checks ask of a machine, in one place, so that another one can be put there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.cache import cache_directory
from awq_edge.device import cuda_driver
from awq_edge.plugin.kernels import KernelLibrary, load_kernels
from awq_edge.plugin.toolchain import find_toolchain

_SECONDS = 10  # for a program to answer


@dataclass(frozen=True)
class GpuFacts:
    """What the CUDA driver says of GPU 0. compute_capability: 10 * major + minor. memory: bytes.
    cuda: the newest CUDA that the driver supports."""

    name: str
    compute_capability: int
    memory: int
    cuda: str | None


@dataclass(frozen=True)
class Machine:
    """root: of the file system. python: its version. run: a program's standard output, None where
    it is not there or fails. version: of an installed distribution. has_module: whether a module
    could be imported; nothing is. gpu: None where there is none, or no driver. compiler: nvcc's
    release and place; raises RuntimeUnavailableError where a tool is missing. kernels: the library
    that runs here; raises RuntimeUnavailableError where there is none. free_disk: bytes.
    """

    root: Path
    python: str
    system: str
    folder: Path
    cache: Path
    run: Callable[[Sequence[str]], str | None]
    version: Callable[[str], str | None]
    requirements: Callable[[], Sequence[str]]
    has_module: Callable[[str], bool]
    gpu: Callable[[], GpuFacts | None]
    compiler: Callable[[], str]
    kernels: Callable[[], KernelLibrary]
    free_disk: Callable[[Path], int]

    def read(self, path: str) -> str | None:
        """A text file by its absolute path; None where it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


def this_machine() -> Machine:
    """The machine that this runs on."""
    return Machine(
        root=Path("/"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        folder=Path.cwd(),
        cache=cache_directory(),
        run=_run,
        version=_version,
        requirements=_requirements,
        has_module=_has_module,
        gpu=_gpu,
        compiler=_compiler,
        kernels=load_kernels,
        free_disk=_free_disk,
    )


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> Sequence[str]:
    try:
        return importlib.metadata.requires("awq-edge") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return []


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _gpu() -> GpuFacts | None:
    name, capability = cuda_driver.device_name(), cuda_driver.compute_capability()
    memory = cuda_driver.memory_figures()
    if name is None or capability is None or memory is None:
        return None
    return GpuFacts(name, capability, memory.total, cuda_driver.driver_version())


def _compiler() -> str:
    tools = find_toolchain()
    return f"nvcc {tools.cuda_version} ({tools.nvcc})"


def _free_disk(path: Path) -> int:
    existing = path.resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
