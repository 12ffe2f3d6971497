"""libawq_edge_kernels.so from Python: located, checked, and called through ctypes.

    library = load_kernels()
    library.call("awq_edge_gather_rows", x, rows, y, count, size, Dtype.FLOAT16, stream)

Tensors are passed as device addresses, streams as the address of a cudaStream_t (0: the default
one). What each function computes is specified in plugins/include/awq_edge_kernels.h.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_size_t
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge._package import PACKAGE
from awq_edge.artifacts.cache import cache_directory
from awq_edge.artifacts.paths import user_path
from awq_edge.device.cuda_driver import compute_capability, driver_version
from awq_edge.errors import KernelError, RuntimeUnavailableError
from awq_edge.kernels.interface import ABI_VERSION, FUNCTIONS, LAYOUT_VERSION, QUERIES, Status

FILE_NAME = "libawq_edge_kernels.so"
ENVIRONMENT_VARIABLE = "AWQ_EDGE_KERNELS"
_HOW_TO_GET = "build it on this machine with `awq-edge build-plugins`"
# CUDA's major version -> the oldest driver that runs it (CUDA Toolkit release notes, table 3).
_DRIVERS = {11: "450", 12: "525", 13: "580"}
# Compute capabilities of Jetson modules: machine code of other GPUs is not specified to run there.
_INTEGRATED = (72, 87)


@dataclass(frozen=True)
class KernelLibrary:
    """The loaded library.

    architectures: compute capabilities that it has machine code for (87: 8.7).
    """

    path: Path
    architectures: tuple[int, ...]
    _handle: ctypes.CDLL

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the header that returns a status.

        name: as in the header ("awq_edge_normalize").
        arguments: structs as they are, everything else as int or float; None is a null pointer.

        Raises KernelError with the library's own words where the status is not OK, and TypeError
        for a wrong number of arguments.
        """
        expected = len(FUNCTIONS[name])
        if len(arguments) != expected:
            raise TypeError(f"{name} takes {expected} arguments, {len(arguments)} were given")
        status = getattr(self._handle, name)(*arguments)
        if status != Status.OK:
            raise KernelError(self._words(name, status))

    def size(self, name: str, *arguments: Any) -> int:
        """The answer of a workspace query (`awq_edge_..._workspace`), in bytes.

        arguments: those before the address of the result. Raises as `call`.
        """
        answer = c_size_t()
        self.call(name, *arguments, answer)
        return answer.value

    def _words(self, name: str, status: int) -> str:
        last = self._handle.awq_edge_last_error().decode()
        words = last or self._handle.awq_edge_status_message(status).decode()
        prefix = "" if words.startswith(f"{name}:") else f"{name}: "
        return f"{prefix}{words} (status {status})"


def load_kernels(path: Path | str | None = None, *, device: int = 0) -> KernelLibrary:
    """The kernel library, from the first place that has it.

    path: the file itself; else the variable AWQ_EDGE_KERNELS, the folder where `awq-edge
    build-plugins` puts it, the installed package, and the build folder of a source checkout.
    device: GPU that it has to run on; where there is none (building an engine ahead of time),
    its machine code is not checked. Raises RuntimeUnavailableError when no file is there, when one
    that was named cannot be used, or when none that is there can.
    """
    named = path or os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        by = "" if path else f"{ENVIRONMENT_VARIABLE}="
        file = user_path(named, "AWQ_EDGE_KERNELS")
        if not file.is_file():
            raise RuntimeUnavailableError(f"{by}{file}: no such file; {_HOW_TO_GET}")
        return _open(file, device)
    refused: list[str] = []
    for file in filter(Path.is_file, candidates()):
        try:
            return _open(file, device)
        except RuntimeUnavailableError as error:
            refused.append(str(error))
    if refused:
        raise RuntimeUnavailableError("; ".join(refused))
    places = ", ".join(str(file.parent) for file in candidates())
    raise RuntimeUnavailableError(f"{FILE_NAME} is not in {places}; {_HOW_TO_GET}")


def candidates() -> list[Path]:
    """The files that may be the library where none is named, in the order of preference."""
    files = [install_directory() / FILE_NAME, PACKAGE / "kernels" / "lib" / FILE_NAME]
    checkout = PACKAGE.parent
    if (checkout / "plugins" / "CMakeLists.txt").is_file():
        files.append(checkout / "build" / "plugins" / FILE_NAME)
    return files


def install_directory() -> Path:
    """The folder that `awq-edge build-plugins` puts the libraries into."""
    return cache_directory() / "plugins"


def runs_on(architectures: tuple[int, ...], capability: int) -> bool:
    """True where machine code for `architectures` runs on a GPU of this compute capability.

    Code runs on the same major version from its own minor version on, between discrete GPUs
    (CUDA C++ Programming Guide, "Binary Compatibility").
    """
    if capability in _INTEGRATED:
        return capability in architectures
    return any(
        built // 10 == capability // 10 and built <= capability
        for built in architectures
        if built not in _INTEGRATED
    )


def _open(file: Path, device: int) -> KernelLibrary:
    """Load a library and check it. Raises RuntimeUnavailableError naming the part that differs."""
    try:
        handle = ctypes.CDLL(str(file.resolve()))
    except OSError as error:
        raise RuntimeUnavailableError(f"{file} cannot be loaded ({error}); {_HOW_TO_GET}") from None
    try:
        # Before anything else: a library of another version may lack functions, or mean others.
        for version, ours in (("abi", ABI_VERSION), ("layout", LAYOUT_VERSION)):
            _declare(handle, f"awq_edge_{version}_version")
            theirs = getattr(handle, f"awq_edge_{version}_version")()
            if theirs != ours:
                raise RuntimeUnavailableError(
                    f"{file} has {version} version {theirs}, this awq-edge needs {ours}; "
                    f"{_HOW_TO_GET}"
                )
        for name in (*QUERIES, *FUNCTIONS):
            _declare(handle, name)
    except AttributeError as error:
        raise RuntimeUnavailableError(
            f"{file} is not a whole kernel library ({error}); {_HOW_TO_GET}"
        ) from None
    _check_driver(file, handle.awq_edge_cuda_version())
    text = handle.awq_edge_architectures().decode()
    architectures = tuple(int(part) for part in text.split(",") if part)
    capability = compute_capability(device)
    if capability is not None and not runs_on(architectures, capability):
        raise RuntimeUnavailableError(
            f"{file} has kernels for compute capability {text}, GPU {device} has {capability}; "
            f"{_HOW_TO_GET}"
        )
    return KernelLibrary(file, architectures, handle)


def _check_driver(file: Path, compiled_with: int) -> None:
    """Raises RuntimeUnavailableError for a driver of an older CUDA.

    compiled_with: awq_edge_cuda_version's.
    """
    offered = driver_version()
    major, minor = compiled_with // 1000, compiled_with % 1000 // 10
    if offered is not None and int(offered.partition(".")[0]) < major:
        oldest = f" ({_DRIVERS[major]} or newer)" if major in _DRIVERS else ""
        raise RuntimeUnavailableError(
            f"{file} was compiled with CUDA {major}.{minor} and needs a driver for CUDA "
            f"{major}{oldest}, the driver here is for CUDA {offered}; update it, or {_HOW_TO_GET} "
            "with its own CUDA"
        )


def _declare(handle: ctypes.CDLL, name: str) -> None:
    """Give a function its types. Raises AttributeError when the library lacks it."""
    function = getattr(handle, name)
    function.restype, function.argtypes = QUERIES.get(name) or (ctypes.c_int, FUNCTIONS[name])
