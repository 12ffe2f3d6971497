"""The device layer on cuda-python: CUDA's runtime API, by NVIDIA's own bindings."""

from __future__ import annotations

import ctypes
import importlib.metadata
from typing import Any

import numpy as np

from awq_edge.device.layer import Gpu, HostBytes, address_of, cuda_error
from awq_edge.errors import RuntimeUnavailableError


class CudaPythonLayer:
    """See `DeviceLayer`."""

    def __init__(self) -> None:
        """Raises RuntimeUnavailableError where there is no driver or no GPU."""
        self._cuda = _runtime()
        attributes = self._cuda.cudaDeviceAttr
        self._call("cudaGetDeviceCount")
        self.activate()
        (properties,) = self._call("cudaGetDeviceProperties", 0)
        (integrated,) = self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrIntegrated, 0)
        self.gpu = Gpu(
            name=_text(properties.name),
            compute_capability=10 * properties.major + properties.minor,
            integrated=bool(integrated),
        )
        (version,) = self._call("cudaDriverGetVersion")
        self.versions = {
            "cuda-python": _package_version(),
            "cuda-driver": f"{version // 1000}.{version % 1000 // 10}",
        }

    def activate(self) -> None:
        self._call("cudaSetDevice", 0)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        (address,) = self._call("cudaMalloc", size, detail=f"{size:,} bytes")
        return int(address)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> HostBytes:
        (address,) = self._call("cudaHostAlloc", size, 0, detail=f"{size:,} bytes")
        array: HostBytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))
        return array

    def free_host(self, array: HostBytes) -> None:
        self._call("cudaFreeHost", address_of(array))

    def create_stream(self) -> int:
        (stream,) = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        return int(stream)

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def copy_to_device(self, target: int, source: HostBytes, stream: int) -> None:
        self._copy(target, address_of(source), source.nbytes, "cudaMemcpyHostToDevice", stream)

    def copy_to_host(self, target: HostBytes, source: int, stream: int) -> None:
        self._copy(address_of(target), source, target.nbytes, "cudaMemcpyDeviceToHost", stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice", stream)

    def clear(self, address: int, size: int, stream: int) -> None:
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def create_event(self) -> int:
        (event,) = self._call("cudaEventCreate")
        return int(event)

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record_event(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def elapsed_seconds(self, begin: int, end: int) -> float:
        self._call("cudaEventSynchronize", end)
        (milliseconds,) = self._call("cudaEventElapsedTime", begin, end)
        return float(milliseconds) / 1e3

    def begin_capture(self, stream: int) -> None:
        # Thread-local: allocations of other threads do not spoil the capture.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        (graph,) = self._call("cudaStreamEndCapture", stream)
        try:
            (executable,) = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return int(executable)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """The primary context is the process's: other libraries may use it."""

    def _copy(self, target: int, source: int, size: int, kind: str, stream: int) -> None:
        kinds = self._cuda.cudaMemcpyKind
        self._call("cudaMemcpyAsync", target, source, size, getattr(kinds, kind), stream)

    def _call(self, name: str, *arguments: Any, detail: str = "") -> tuple[Any, ...]:
        """Call a function of the runtime API; returns its results after the status."""
        status, *values = getattr(self._cuda, name)(*arguments)
        code = int(status)
        if code:
            raise cuda_error(name, code, self._words(status), detail)
        return tuple(values)

    def _words(self, status: Any) -> str:
        texts = (self._cuda.cudaGetErrorName(status), self._cuda.cudaGetErrorString(status))
        return ", ".join(_text(text) for _, text in texts)


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"cuda-python cannot be loaded ({error}); install the version of this machine's CUDA "
            "(`pip install 'cuda-python==12.*'` for CUDA 12)"
        ) from None
    return runtime


def _package_version() -> str:
    for package in ("cuda-python", "cuda-bindings"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _text(value: bytes | str) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text.rstrip("\0")
