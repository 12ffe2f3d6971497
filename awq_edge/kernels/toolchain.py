"""The tools that build the kernels: nvcc, cmake, ninja or make, a C++ compiler. Where they are."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from awq_edge.artifacts.paths import user_path
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.process import children

_TIMEOUT_S = 60
_LOCAL_CUDA = Path("/usr/local/cuda")
_PIP = "`pip install 'awq-edge[build]'`"


@dataclass(frozen=True)
class Toolchain:
    """The programs of a build.

    cuda_version: nvcc's release.
    known_architectures: compute capabilities that nvcc compiles for.
    maker: the program that runs the compilers.
    generator: cmake's name of `maker`.
    """

    nvcc: Path
    cuda_version: str
    known_architectures: tuple[int, ...]
    cmake: Path
    maker: Path
    generator: str
    cxx: Path

    def cmake_arguments(self) -> list[str]:
        """The arguments that make cmake use these tools and no others."""
        return [
            *("-G", self.generator, f"-DCMAKE_MAKE_PROGRAM={self.maker}"),
            f"-DCMAKE_CUDA_COMPILER={self.nvcc}",
            f"-DCMAKE_CXX_COMPILER={self.cxx}",
            f"-DCMAKE_CUDA_HOST_COMPILER={self.cxx}",
        ]

    def environment(self) -> dict[str, str]:
        """Variables of the build's processes.

        The wheels of Python's package index keep CUDA's libraries in `lib`, where their nvcc looks
        in `lib64`.
        """
        environment = dict(os.environ)
        libraries = self.nvcc.parent.parent / "lib"
        if (libraries / "libcudart_static.a").is_file():
            others = environment.get("LIBRARY_PATH")
            environment["LIBRARY_PATH"] = f"{libraries}:{others}" if others else str(libraries)
        return environment


def find_toolchain() -> Toolchain:
    """The tools of this machine: nvcc from CUDA_HOME, PATH, /usr/local/cuda or Python's packages.

    Raises RuntimeUnavailableError naming each tool that is missing and how to get it.
    """
    nvcc, cmake, cxx = _find_nvcc(), _which("cmake"), _cxx()
    ninja, make = _which("ninja"), _which("make")
    maker = ninja or make
    if nvcc is None or cmake is None or maker is None or cxx is None:
        missing = "; ".join(_HOW_TO_GET[tool] for tool in missing_tools())
        raise RuntimeUnavailableError(f"the kernels cannot be built here: {missing}")
    return Toolchain(
        nvcc=nvcc,
        cuda_version=_cuda_version(nvcc),
        known_architectures=_known_architectures(nvcc),
        cmake=cmake,
        maker=maker,
        generator="Ninja" if ninja else "Unix Makefiles",
        cxx=cxx,
    )


_HOW_TO_GET = {
    "nvcc": f"nvcc, CUDA's compiler, is not in CUDA_HOME, on PATH, in {_LOCAL_CUDA} or among "
    "Python's packages: on a Jetson `sudo apt install nvidia-jetpack`, elsewhere " + _PIP,
    "cmake": f"cmake is not on PATH: `sudo apt install cmake` or {_PIP}",
    "make": f"neither ninja nor make is on PATH: `sudo apt install make` or {_PIP}",
    "g++": "no C++ compiler (c++, g++, or CXX): `sudo apt install g++`",
}


def missing_tools() -> tuple[str, ...]:
    """The tools among nvcc, cmake, make (or ninja) and g++ that are not here, by name.

    Raises RuntimeUnavailableError for a CUDA_HOME without nvcc.
    """
    paths = {
        "nvcc": _find_nvcc(),
        "cmake": _which("cmake"),
        "make": _which("ninja") or _which("make"),
        "g++": _cxx(),
    }
    return tuple(tool for tool, path in paths.items() if path is None)


def _cxx() -> Path | None:
    return _which(os.environ.get("CXX") or "c++") or _which("g++")


def _find_nvcc() -> Path | None:
    named = os.environ.get("CUDA_HOME")
    if named:
        # A folder that was named is not silently replaced by another CUDA.
        nvcc = user_path(named, "CUDA_HOME") / "bin" / "nvcc"
        if not nvcc.is_file():
            raise RuntimeUnavailableError(
                f"CUDA_HOME={named} has no bin/nvcc; name the folder of a CUDA toolkit, or unset it"
            )
        return nvcc
    on_path = _which("nvcc")
    if on_path is not None:
        return on_path
    places = [_LOCAL_CUDA, *_packaged_toolkits()]
    return next((p / "bin" / "nvcc" for p in places if (p / "bin" / "nvcc").is_file()), None)


def _packaged_toolkits() -> list[Path]:
    """Toolkits that came as Python packages (`nvidia/cu13`), the newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    toolkits = [toolkit for folder in folders or () for toolkit in Path(folder).glob("cu[0-9]*")]
    return sorted(toolkits, key=lambda path: path.name, reverse=True)


def _which(name: str) -> Path | None:
    """A program on PATH, or beside this Python (an environment that is not activated)."""
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    path = shutil.which(name, path=places)
    return Path(path) if path else None


def _cuda_version(nvcc: Path) -> str:
    match = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    if match is None:
        raise RuntimeUnavailableError(f"{nvcc} --version names no release; name another: CUDA_HOME")
    return match[1]


def _known_architectures(nvcc: Path) -> tuple[int, ...]:
    text = _output(nvcc, "--list-gpu-arch")
    known = sorted({int(number) for number in re.findall(r"^compute_(\d+)\b", text, re.MULTILINE)})
    if not known:
        raise RuntimeUnavailableError(
            f"{nvcc} --list-gpu-arch lists nothing; CUDA 11.8 or newer is needed"
        )
    return tuple(known)


def _output(nvcc: Path, argument: str) -> str:
    try:
        done = children.run([nvcc, argument], timeout=_TIMEOUT_S)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, done.args)
        return done.stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeUnavailableError(
            f"{nvcc} {argument} fails ({error}); name another CUDA toolkit: CUDA_HOME"
        ) from None
