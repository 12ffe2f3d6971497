"""The device layer on PyCUDA: the driver API, for Jetson images that already carry it.

PyCUDA knows no graphs and no way to make a context current in another thread; those few calls go to
the driver through ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from ctypes import c_int, c_uint, c_void_p
from typing import Any

from awq_edge.device.layer import OUT_OF_MEMORY, Gpu, HostBytes, cuda_error
from awq_edge.errors import RuntimeUnavailableError

_CAPTURE_THREAD_LOCAL = 1  # CUstreamCaptureMode
_STREAM_NON_BLOCKING = 1  # CUstream_flags
_UNKNOWN_CODE = 999  # CUDA_ERROR_UNKNOWN: PyCUDA's exceptions carry words and no code


class PyCudaLayer:
    """See `DeviceLayer`. The GPU's primary context, which TensorRT uses too."""

    def __init__(self) -> None:
        """Raises RuntimeUnavailableError where there is no driver or no GPU."""
        self._pycuda = _pycuda_driver()
        with self._errors("cuInit"):
            self._pycuda.init()
        if self._pycuda.Device.count() == 0:
            raise cuda_error("cuDeviceGetCount", 100, "there is none")
        with self._errors("cuDevicePrimaryCtxRetain"):
            device = self._pycuda.Device(0)
            self._context = device.retain_primary_context()
            self._context.push()
        self._driver = _Driver()
        self._handle = self._driver.current_context()
        major, minor = device.compute_capability()
        attribute = self._pycuda.device_attribute.INTEGRATED
        self.gpu = Gpu(device.name(), 10 * major + minor, bool(device.get_attribute(attribute)))
        version = self._pycuda.get_driver_version()
        self.versions = {
            "pycuda": _package_version(),
            "cuda-driver": f"{version // 1000}.{version % 1000 // 10}",
        }
        # PyCUDA frees what is no longer referred to: address or handle -> its object.
        self._objects: dict[int, Any] = {}

    def activate(self) -> None:
        self._driver.call("cuCtxSetCurrent", c_void_p(self._handle))

    def memory(self) -> tuple[int, int]:
        with self._errors("cuMemGetInfo"):
            free, total = self._pycuda.mem_get_info()
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        with self._errors("cuMemAlloc", f"{size:,} bytes"):
            allocation = self._pycuda.mem_alloc(size)
        return self._keep(int(allocation), allocation)

    def free(self, address: int) -> None:
        with self._errors("cuMemFree"):
            self._objects.pop(address).free()

    def allocate_host(self, size: int) -> HostBytes:
        with self._errors("cuMemHostAlloc", f"{size:,} bytes"):
            array: HostBytes = self._pycuda.pagelocked_empty(size, "uint8")
        return array

    def free_host(self, array: HostBytes) -> None:
        with self._errors("cuMemFreeHost"):
            base: Any = array.base
            base.free()

    def create_stream(self) -> int:
        with self._errors("cuStreamCreate"):
            stream = self._pycuda.Stream(_STREAM_NON_BLOCKING)
        return self._keep(int(stream.handle), stream)

    def destroy_stream(self, stream: int) -> None:
        with self._errors("cuStreamDestroy"):
            del self._objects[stream]

    def synchronize(self, stream: int) -> None:
        with self._errors("cuStreamSynchronize"):
            self._objects[stream].synchronize()

    def copy_to_device(self, target: int, source: HostBytes, stream: int) -> None:
        with self._errors("cuMemcpyHtoDAsync"):
            self._pycuda.memcpy_htod_async(target, source, self._objects[stream])

    def copy_to_host(self, target: HostBytes, source: int, stream: int) -> None:
        with self._errors("cuMemcpyDtoHAsync"):
            self._pycuda.memcpy_dtoh_async(target, source, self._objects[stream])

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        with self._errors("cuMemcpyDtoDAsync"):
            self._pycuda.memcpy_dtod_async(target, source, size, self._objects[stream])

    def clear(self, address: int, size: int, stream: int) -> None:
        with self._errors("cuMemsetD8Async"):
            self._pycuda.memset_d8_async(address, 0, size, self._objects[stream])

    def create_event(self) -> int:
        with self._errors("cuEventCreate"):
            event = self._pycuda.Event()
        return self._keep(id(event), event)

    def destroy_event(self, event: int) -> None:
        with self._errors("cuEventDestroy"):
            del self._objects[event]

    def record_event(self, event: int, stream: int) -> None:
        with self._errors("cuEventRecord"):
            self._objects[event].record(self._objects[stream])

    def elapsed_seconds(self, begin: int, end: int) -> float:
        with self._errors("cuEventElapsedTime"):
            self._objects[end].synchronize()
            milliseconds: float = self._objects[end].time_since(self._objects[begin])
        return milliseconds / 1e3

    def begin_capture(self, stream: int) -> None:
        self._driver.call("cuStreamBeginCapture_v2", c_void_p(stream), c_int(_CAPTURE_THREAD_LOCAL))

    def end_capture(self, stream: int) -> int:
        graph = self._driver.made("cuStreamEndCapture", c_void_p(stream))
        try:
            return self._driver.instantiated(graph)
        finally:
            self._driver.call("cuGraphDestroy", c_void_p(graph))

    def launch_graph(self, graph: int, stream: int) -> None:
        self._driver.call("cuGraphLaunch", c_void_p(graph), c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        self._driver.call("cuGraphExecDestroy", c_void_p(graph))

    def close(self) -> None:
        """Give the primary context back."""
        if self._context is not None:
            self.activate()
            with self._errors("cuDevicePrimaryCtxRelease"):
                self._pycuda.Context.pop()
                self._context.detach()
            self._context = None

    def _keep(self, handle: int, made: Any) -> int:
        self._objects[handle] = made
        return handle

    @contextlib.contextmanager
    def _errors(self, call: str, detail: str = "") -> Iterator[None]:
        """PyCUDA's exceptions as ours."""
        try:
            yield
        except self._pycuda.MemoryError as error:
            raise cuda_error(call, OUT_OF_MEMORY, str(error), detail) from None
        except self._pycuda.Error as error:
            raise cuda_error(call, _UNKNOWN_CODE, str(error), detail) from None


class _Driver:
    """The calls of libcuda that PyCUDA lacks."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise cuda_error(name, code, self._words(code))

    def made(self, name: str, *arguments: Any) -> int:
        """The handle that a function writes to its last argument."""
        handle = c_void_p()
        self.call(name, *arguments, ctypes.byref(handle))
        return handle.value or 0

    def instantiated(self, graph: int) -> int:
        executable, flags = c_void_p(), ctypes.c_ulonglong(0)
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), c_void_p(graph), flags)
        return executable.value or 0

    def current_context(self) -> int:
        return self.made("cuCtxGetCurrent")

    def _words(self, code: int) -> str:
        texts = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self._library, name)(c_uint(code), ctypes.byref(text))
            texts.append((text.value or b"?").decode())
        return ", ".join(texts)


def _pycuda_driver() -> Any:
    try:
        import pycuda.driver
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"pycuda cannot be loaded ({error}); install it on this machine, against its CUDA"
        ) from None
    return pycuda.driver


def _package_version() -> str:
    import pycuda

    version: str = pycuda.VERSION_TEXT
    return version
