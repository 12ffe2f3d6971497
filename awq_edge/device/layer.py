"""The device layer: the calls of CUDA that a session needs, and the choice of their package.

cuda-python by default (extras rtx and jetson), PyCUDA where an image already has it (extra pycuda);
AWQ_EDGE_DEVICE_LAYER=cuda-python|pycuda chooses. Addresses and handles are integers, so that they
go to TensorRT and to the kernel library as they are. One GPU, number 0 of CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ConfigError, DeviceError, RuntimeUnavailableError
from awq_edge.process.memory_errors import gpu_memory_error

ENVIRONMENT_VARIABLE = "AWQ_EDGE_DEVICE_LAYER"
# Name of a layer -> the module that it needs.
_LAYERS = {"cuda-python": "cuda.bindings", "pycuda": "pycuda"}
# TensorRT's alignment of an address: IExecutionContext::setTensorAddress.
ALIGNMENT = 256

HostBytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Gpu:
    """A GPU."""

    name: str
    compute_capability: int  # 10 * major + minor
    integrated: bool  # its memory is the system's (Jetson)


class DeviceLayer(Protocol):
    """CUDA on one GPU. Every method raises ResourceError where memory runs out and DeviceError for
    anything else that CUDA refuses, with CUDA's own words."""

    @property
    def gpu(self) -> Gpu: ...

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the package and of CUDA, by name."""
        ...

    def activate(self) -> None:
        """Make the GPU current in the calling thread; before a thread's first call."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes of the GPU's memory: free, and all (cudaMemGetInfo)."""
        ...

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the GPU, aligned to 256."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int) -> HostBytes:
        """Page-locked bytes of the host: uint8 [size]."""
        ...

    def free_host(self, array: HostBytes) -> None:
        """array: from `allocate_host`; neither it nor a view of it may be used any more."""
        ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Wait for the work queued on a stream."""
        ...

    def copy_to_device(self, target: int, source: HostBytes, stream: int) -> None:
        """Queue a copy of contiguous host bytes to an address on the GPU."""
        ...

    def copy_to_host(self, target: HostBytes, source: int, stream: int) -> None:
        """Queue a copy from an address on the GPU that fills contiguous host bytes."""
        ...

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None: ...

    def clear(self, address: int, size: int, stream: int) -> None:
        """Queue zeros."""
        ...

    def create_event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record_event(self, event: int, stream: int) -> None: ...

    def elapsed_seconds(self, begin: int, end: int) -> float:
        """Seconds between two recorded events; waits for the second."""
        ...

    def begin_capture(self, stream: int) -> None:
        """Record, without executing, the work that this thread queues on the stream from now on."""
        ...

    def end_capture(self, stream: int) -> int:
        """A graph of the work queued since `begin_capture`, ready to launch."""
        ...

    def launch_graph(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def close(self) -> None:
        """Release the layer itself; buffers, streams and graphs are the caller's."""
        ...


def choose_layer(name: str | None = None) -> str:
    """The name of the layer to open: "cuda-python" or "pycuda".

    name: None for the environment variable AWQ_EDGE_DEVICE_LAYER, else the first that is installed.
    Raises RuntimeUnavailableError where neither is installed, ConfigError for another name.
    """
    asked = name or os.environ.get(ENVIRONMENT_VARIABLE)
    if asked and asked not in _LAYERS:
        origin = "" if name else f"{ENVIRONMENT_VARIABLE}="
        raise ConfigError(f"{origin}{asked}: no such device layer; give {' or '.join(_LAYERS)}")
    chosen = asked or next(filter(is_installed, _LAYERS), None)
    if chosen is None:
        raise RuntimeUnavailableError(
            "neither cuda-python nor pycuda is installed; pip install 'awq-edge[rtx]' on a PC, "
            "'awq-edge[jetson]' on a Jetson"
        )
    if not is_installed(chosen):
        raise RuntimeUnavailableError(
            f"the device layer {chosen} is asked for and its package is not installed; "
            f"`pip install {chosen}`, or unset {ENVIRONMENT_VARIABLE}"
        )
    return chosen


def open_layer(name: str | None = None) -> DeviceLayer:
    """The device layer on the first GPU.

    name: see `choose_layer`.
    Raises the errors of `choose_layer`, and RuntimeUnavailableError where CUDA finds no driver or
    GPU.
    """
    chosen = choose_layer(name)
    if chosen == "pycuda":
        from awq_edge.device.layer_pycuda import PyCudaLayer

        return PyCudaLayer()
    from awq_edge.device.layer_cuda_python import CudaPythonLayer

    return CudaPythonLayer()


def is_installed(name: str) -> bool:
    """True if the package of a layer can be imported."""
    try:
        return importlib.util.find_spec(_LAYERS[name]) is not None
    except ModuleNotFoundError:  # its parent package is not there
        return False


OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY
_NO_GPU = (100, 101)  # no device, invalid device: of both APIs
_OLD_DRIVER = 35  # cudaErrorInsufficientDriver: also where there is none


def cuda_error(call: str, code: int, words: str, detail: str = "") -> Exception:
    """The error of a call that CUDA refused. words: CUDA's name and description of the code."""
    what = f"{call}{f' of {detail}' if detail else ''}: {words} (CUDA error {code})"
    if code == OUT_OF_MEMORY:
        return gpu_memory_error(what)
    if code in _NO_GPU:
        return RuntimeUnavailableError(f"CUDA finds no NVIDIA GPU here ({what})")
    if code == _OLD_DRIVER:
        return RuntimeUnavailableError(
            "there is no NVIDIA driver here, or one that is older than the installed CUDA package "
            f"needs ({what}); update the driver, or install the package of its CUDA version"
        )
    return DeviceError(
        f"{what}; what ran before it on the GPU may be the cause: run again with "
        "CUDA_LAUNCH_BLOCKING=1 to see which call"
    )


def address_of(array: npt.NDArray[Any]) -> int:
    """Address of the first byte of a contiguous array."""
    assert array.flags.c_contiguous
    address: int = array.ctypes.data
    return address
