"""The kernel library that a platform's wheel carries, compiled on an x86-64 machine.

    python scripts/wheel_library.py linux_aarch64      prints the library's path

linux_x86_64    the machine's own C++ compiler
linux_aarch64   Debian's cross compiler (`apt install g++-aarch64-linux-gnu`), CUDA's headers and
                static runtime for aarch64 from NVIDIA's wheels of nvcc's release. On an aarch64
                machine its own compiler.

What a library is compiled for: `awq_edge.kernels.architectures.TARGETS_OF_MACHINE`.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import kernel_resources

from awq_edge.artifacts.directories import atomic_directory
from awq_edge.kernels.architectures import TARGETS_OF_MACHINE
from awq_edge.kernels.kernels import FILE_NAME
from awq_edge.kernels.toolchain import Toolchain, find_toolchain

PLATFORMS = {f"linux_{machine}": machine for machine in TARGETS_OF_MACHINE}
_CUDA = tuple(f"nvidia-cuda-{part}" for part in ("runtime", "nvcc", "crt", "cccl"))
# Debian's package without a version in its name, and those with one that CUDA 13 takes.
_CROSS_COMPILERS = tuple(f"aarch64-linux-gnu-g++{suffix}" for suffix in ("", "-12", "-13", "-14"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("platform", choices=PLATFORMS)
    machine = PLATFORMS[parser.parse_args().platform]
    tools, options = find_toolchain(), []
    if machine != platform.machine():
        if (machine, platform.machine()) != ("aarch64", "x86_64"):
            sys.exit(f"{platform.machine()} compiles for itself alone; {machine} needs x86_64")
        tools, options = cross_toolchain(tools)
    targets = [each for each in TARGETS_OF_MACHINE[machine] if each in tools.known_architectures]
    print(kernel_resources.compiled(tools, targets, options) / FILE_NAME)


def cross_toolchain(tools: Toolchain) -> tuple[Toolchain, list[str]]:
    """The tools that compile for aarch64, and cmake's arguments beside theirs."""
    compiler = next(filter(None, map(shutil.which, _CROSS_COMPILERS)), None)
    if compiler is None:
        sys.exit(f"no {_CROSS_COMPILERS[0]}: `sudo apt install g++-aarch64-linux-gnu`")
    cuda = aarch64_cuda(tools.cuda_version)
    flags = f"-I{cuda}/include -isystem {cuda}/include/cccl -L{cuda}/lib"
    options = [
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CUDA_FLAGS={flags}",
    ]
    return dataclasses.replace(tools, cxx=Path(compiler)), options


def aarch64_cuda(release: str) -> Path:
    """A folder with CUDA's headers and static runtime for aarch64. release: nvcc's, "13.0"."""
    folder = kernel_resources.ROOT / "build" / f"cuda-{release}-aarch64"
    if not folder.is_dir():
        with atomic_directory(folder) as work:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--only-binary=:all:", "--platform", "manylinux2014_aarch64"]
            command += ["--dest", str(work), *(f"{name}=={release}.*" for name in _CUDA)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            for wheel in work.glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(work)
                wheel.unlink()
    return next(folder.glob("nvidia/cu*"))


if __name__ == "__main__":
    main()
