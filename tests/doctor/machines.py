"""Machines that are not here: a folder for the file system, and answers for everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from awq_edge.doctor.machine import GpuFacts, Machine, PythonFacts
from awq_edge.errors import RuntimeUnavailableError

GIB = 2**30
REQUIREMENTS = (
    "numpy>=1.26",
    "torch>=2.6; extra == 'host'",
    "onnx>=1.20; extra == 'host'",
    "tensorrt-rtx>=1.7; extra == 'rtx'",
    "cuda-python>=13; extra == 'rtx'",
    "torch>=2.6; extra == 'cuda'",
    "pytest>=8.3; extra == 'dev'",
)
MEMINFO = """\
MemTotal:        {total} kB
MemFree:          500000 kB
MemAvailable:    {available} kB
SwapFree:        {swap} kB
"""
JETSON_MEMINFO = MEMINFO + "CmaTotal:         262144 kB\nCmaFree:          {cma} kB\n"
SWAPS = """\
Filename                                Type            Size            Used            Priority
/swapfile                               file            8388604         0               -2
"""
ORIN_NANO = "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
JETPACK_PACKAGE = """\
Package: bash
Status: install ok installed
Version: 5.1

Package: nvidia-jetpack
Status: install ok installed
Version: {version}
"""


VENV = PythonFacts(
    version="3.12.3",
    executable="/home/me/env/bin/python",
    base="/usr",
    is_venv=True,
    sees_system=False,
    conda=False,
    managed=False,
    pip=True,
)
JETSON_VENV = replace(VENV, version="3.10.12", sees_system=True)


@dataclass
class Fake:
    """What a test changes before it makes a `Machine` of it."""

    root: Path
    files: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    gpu: GpuFacts | None = None
    compiler: str | None = None
    architectures: tuple[int, ...] | None = None
    disk: int = 200 * GIB
    python: PythonFacts = VENV
    system: str = "Linux x86_64"
    environment: dict[str, str] = field(default_factory=dict)
    is_root: bool = False
    may_sudo: bool = True
    cuda_status: int | None = None
    closed: frozenset[str] = frozenset()
    links: dict[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    requirements: tuple[str, ...] = REQUIREMENTS

    def machine(self) -> Machine:
        for name, text in self.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name, target in self.links.items():
            link = self.root / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        return Machine(
            root=self.root,
            python=self.python,
            system=self.system,
            folder=self.root / "work",
            cache=self.root / "cache",
            environment=self.environment,
            is_root=self.is_root,
            may_sudo=self.may_sudo,
            run=self._run,
            version=self.versions.get,
            requirements=lambda: self.requirements,
            has_module=lambda name: name in self.modules,
            gpu=lambda: self.gpu,
            cuda_status=lambda: self.cuda_status,
            can_open=self._can_open,
            compiler=self._compiler,
            missing_tools=lambda: self.tools,
            kernels=self._kernels,
            free_disk=lambda path: self.disk,
        )

    def _run(self, command: Sequence[str]) -> str | None:
        return self.commands.get(" ".join(command))

    def _can_open(self, path: str) -> bool | None:
        if path in self.closed:
            return False
        return True if (self.root / path.lstrip("/")).exists() else None

    def _compiler(self) -> str:
        if self.compiler is None:
            raise RuntimeUnavailableError("nvcc, CUDA's compiler, is nowhere")
        return self.compiler

    def _kernels(self) -> Any:
        if self.architectures is None:
            raise RuntimeUnavailableError("libawq_edge_kernels.so is not in /nowhere")
        path = self.root / "cache/plugins/libawq_edge_kernels.so"
        return SimpleNamespace(path=path, architectures=self.architectures)


def bare_cpu(root: Path) -> Fake:
    """A base install on a machine without a GPU."""
    meminfo = MEMINFO.format(total=16 << 20, available=12 << 20, swap=0)
    return Fake(root, files={"proc/meminfo": meminfo})


def rtx_laptop(root: Path) -> Fake:
    """Everything that a GeForce RTX 4070 laptop needs, on mains."""
    return Fake(
        root,
        files={
            "proc/meminfo": MEMINFO.format(total=16 << 20, available=12 << 20, swap=0),
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64"
            "  580.95.05  Release Build\n",
            "sys/class/power_supply/AC/online": "1\n",
        },
        versions={"tensorrt-rtx": "1.7.1", "cuda-python": "13.0.3", "cuda-bindings": "13.0.3"},
        modules={"tensorrt_rtx", "cuda.bindings"},
        gpu=GpuFacts("NVIDIA GeForce RTX 4070 Laptop GPU", 89, 8 * GIB, "13.2"),
        compiler="nvcc 13.0 (/usr/local/cuda/bin/nvcc)",
        architectures=(86, 89),
    )


def jetson(
    root: Path, *, l4t: str = "R36 (release), REVISION: 4.3", jetpack: str = "6.2+b77"
) -> Fake:
    """A Jetson Orin Nano 8GB in its default power mode, with JetPack and all of it."""
    return Fake(
        root,
        files={
            "proc/meminfo": JETSON_MEMINFO.format(
                total=7_600_000, available=6_600_000, swap=8 << 20, cma=250_000
            ),
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": ORIN_NANO,
            "proc/swaps": SWAPS,
            "etc/nv_tegra_release": f"# {l4t}, GCID: 1, BOARD: generic, EABI: aarch64\n",
            "var/lib/dpkg/status": JETPACK_PACKAGE.format(version=jetpack),
        },
        commands={"nvpmodel -q": "NV Power Mode: 25W\n1\n"},
        versions={"tensorrt": "10.3.0", "cuda-bindings": "12.6.2"},
        modules={"tensorrt", "cuda.bindings"},
        gpu=GpuFacts("Orin", 87, 7 * GIB, "12.6"),
        architectures=(87,),
        python=JETSON_VENV,
        system="Linux aarch64",
    )


def statuses(rows: Sequence[Any]) -> Mapping[str, str]:
    """The status of every check."""
    return {row.check: row.status for row in rows}
