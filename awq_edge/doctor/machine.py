"""The facts of a machine that the checks ask for, in one record, so that tests can replace it."""

from __future__ import annotations

import grp
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.artifacts.cache import cache_directory
from awq_edge.device import cuda_driver
from awq_edge.kernels.kernels import KernelLibrary, load_kernels
from awq_edge.kernels.toolchain import find_toolchain, missing_tools
from awq_edge.process import children

_SECONDS = 10  # for a program to answer
_ADMINISTRATORS = ("sudo", "wheel", "admin")  # groups that sudo lets in, by distribution


@dataclass(frozen=True)
class GpuFacts:
    """GPU 0 by the CUDA driver."""

    name: str
    compute_capability: int  # 10 * major + minor
    memory: int  # bytes
    cuda: str | None  # the newest CUDA that the driver supports


@dataclass(frozen=True)
class PythonFacts:
    """The running Python."""

    version: str  # "3.12.3"
    executable: str  # the interpreter
    base: str  # prefix of its installation
    is_venv: bool  # a virtual environment
    sees_system: bool  # packages of `base`'s own site are seen
    conda: bool  # an environment of conda's
    managed: bool  # the distribution keeps pip out (PEP 668)
    pip: bool  # it has pip

    @property
    def is_systems(self) -> bool:
        """True if this Python is the distribution's, or an environment that sees the distribution's
        packages: those of apt, such as JetPack's TensorRT."""
        return self.base == "/usr" and self.sees_system and not self.conda


@dataclass(frozen=True)
class Machine:
    """A machine's files, user, programs and libraries."""

    root: Path  # of the file system
    python: PythonFacts
    system: str  # "Linux x86_64"
    folder: Path
    cache: Path
    environment: Mapping[str, str]  # variables
    # is_root, may_sudo: of this user
    is_root: bool
    may_sudo: bool
    # a program's standard output, None where it is not there or fails
    run: Callable[[Sequence[str]], str | None]
    version: Callable[[str], str | None]  # of an installed distribution
    requirements: Callable[[], Sequence[str]]
    has_module: Callable[[str], bool]  # True if a module could be imported; nothing is
    gpu: Callable[[], GpuFacts | None]  # None where there is none, or no driver
    cuda_status: Callable[[], int | None]  # cuInit's answer, None without a driver
    # True if this user may read and write a device file, None where it is not there
    can_open: Callable[[str], bool | None]
    # nvcc's release and place; raises RuntimeUnavailableError where a tool is missing
    compiler: Callable[[], str]
    missing_tools: Callable[[], Sequence[str]]  # names
    # the library that runs here; raises RuntimeUnavailableError where there is none
    kernels: Callable[[], KernelLibrary]
    free_disk: Callable[[Path], int]  # bytes

    def read(self, path: str) -> str | None:
        """A text file by its absolute path; None where it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


def this_machine() -> Machine:
    """The facts of this machine."""
    is_root = os.geteuid() == 0
    return Machine(
        root=Path("/"),
        python=_python(),
        system=f"{platform.system()} {platform.machine()}",
        folder=Path.cwd(),
        cache=cache_directory(),
        environment=os.environ,
        is_root=is_root,
        may_sudo=not is_root and shutil.which("sudo") is not None and _is_administrator(),
        run=_run,
        version=_version,
        requirements=_requirements,
        has_module=_has_module,
        gpu=_gpu,
        cuda_status=cuda_driver.init_status,
        can_open=_can_open,
        compiler=_compiler,
        missing_tools=missing_tools,
        kernels=load_kernels,
        free_disk=_free_disk,
    )


def _python() -> PythonFacts:
    is_venv = sys.prefix != sys.base_prefix
    config = Path(sys.prefix, "pyvenv.cfg")
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    settings = {
        key.strip(): value.strip().lower()
        for key, _, value in (line.partition("=") for line in text.splitlines())
    }
    return PythonFacts(
        version=platform.python_version(),
        executable=sys.executable,
        base=sys.base_prefix,
        is_venv=is_venv,
        sees_system=not is_venv or settings.get("include-system-site-packages") == "true",
        conda=Path(sys.base_prefix, "conda-meta").is_dir(),
        managed=not is_venv and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").is_file(),
        pip=_has_module("pip"),
    )


def _is_administrator() -> bool:
    names = set()
    for number in os.getgroups():
        try:
            names.add(grp.getgrgid(number).gr_name)
        except KeyError:  # a group of the host, in a container
            continue
    return not names.isdisjoint(_ADMINISTRATORS)


def _run(command: Sequence[str]) -> str | None:
    try:
        done = children.run(command, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


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


def _can_open(path: str) -> bool | None:
    return os.access(path, os.R_OK | os.W_OK) if os.path.exists(path) else None


def _compiler() -> str:
    tools = find_toolchain()
    return f"nvcc {tools.cuda_version} ({tools.nvcc})"


def _free_disk(path: Path) -> int:
    existing = path.resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
