"""cuda.bindings.runtime, pycuda.driver and libcuda as far as the device layers call them.

Each notes its calls and answers as the real one would; `fail` names a call and the error that it
returns. What is copied is copied, between addresses of the host.
"""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace
from typing import Any

import numpy as np

GRAPH, EXECUTABLE, STREAM, EVENT, CONTEXT = 71, 72, 73, 74, 75


class Stub:
    """calls: (name, arguments). fail: name of the call that fails -> its code."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fail: dict[str, int] = {}
        self.memory: dict[int, Any] = {}

    def note(self, name: str, *arguments: Any) -> int:
        self.calls.append((name, arguments))
        return self.fail.get(name, 0)

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]

    def block(self, size: int) -> int:
        raw = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(raw)] = raw
        return ctypes.addressof(raw)


class Error(enum.IntEnum):
    """cudaError_t."""

    SUCCESS = 0
    MEMORY_ALLOCATION = 2
    INSUFFICIENT_DRIVER = 35
    NO_DEVICE = 100
    ILLEGAL_ADDRESS = 700


class StubRuntime(Stub):
    """The module cuda.bindings.runtime: functions return a tuple, the status first."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h", cudaMemcpyDeviceToDevice="d2d"
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrIntegrated="integrated")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def function(*arguments: Any) -> tuple[Any, ...]:
            status = Error(self.note(name, *arguments))
            values = self._values(name, arguments)
            return (status, *(None if status else value for value in values))

        return function

    def cudaGetErrorName(self, status: Error) -> tuple[Error, bytes]:
        return Error.SUCCESS, f"cudaError{status.name}".encode()

    def cudaGetErrorString(self, status: Error) -> tuple[Error, bytes]:
        return Error.SUCCESS, b"in words"

    def _values(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name in ("cudaMalloc", "cudaHostAlloc"):
            return (self.block(arguments[0]),)
        if name == "cudaMemcpyAsync":
            ctypes.memmove(*arguments[:3])
        if name == "cudaMemsetAsync":
            ctypes.memset(*arguments[:3])
        properties = SimpleNamespace(name=b"NVIDIA Stub\0\0", major=8, minor=7)
        answers: dict[str, tuple[Any, ...]] = {
            "cudaGetDeviceCount": (1,),
            "cudaGetDeviceProperties": (properties,),
            "cudaDeviceGetAttribute": (1,),
            "cudaDriverGetVersion": (13020,),
            "cudaMemGetInfo": (1000, 3000),
            "cudaStreamCreateWithFlags": (STREAM,),
            "cudaEventCreate": (EVENT,),
            "cudaEventElapsedTime": (250.0,),
            "cudaStreamEndCapture": (GRAPH,),
            "cudaGraphInstantiate": (EXECUTABLE,),
        }
        return answers.get(name, ())


class PycudaError(Exception):
    """pycuda.driver.Error."""


class PycudaMemoryError(PycudaError):
    """pycuda.driver.MemoryError."""


class StubPycuda(Stub):
    """The module pycuda.driver: functions raise, memory is freed by its objects."""

    Error = PycudaError
    MemoryError = PycudaMemoryError
    device_attribute = SimpleNamespace(INTEGRATED="integrated")

    def __init__(self) -> None:
        super().__init__()
        self.devices = 1
        stub = self

        class Device:
            def __init__(self, index: int) -> None:
                stub.act("Device", index)

            @staticmethod
            def count() -> int:
                return stub.devices

            def name(self) -> str:
                return "NVIDIA Stub"

            def compute_capability(self) -> tuple[int, int]:
                return 8, 7

            def get_attribute(self, attribute: str) -> int:
                return 1

            def retain_primary_context(self) -> Any:
                return Context()

        class Context:
            def push(self) -> None:
                stub.act("push")

            @staticmethod
            def pop() -> None:
                stub.act("pop")

            def detach(self) -> None:
                stub.act("detach")

        class Allocation:
            def __init__(self, size: int) -> None:
                self.address = stub.block(size)

            def __int__(self) -> int:
                return self.address

            def free(self) -> None:
                stub.act("free", self.address)

        class Stream:
            handle = STREAM

            def __init__(self, flags: int) -> None:
                stub.act("Stream", flags)

            def synchronize(self) -> None:
                stub.act("synchronize")

        class Event:
            def __init__(self) -> None:
                stub.act("Event")

            def record(self, stream: Any) -> None:
                stub.act("record", stream.handle)

            def synchronize(self) -> None:
                stub.act("synchronize_event")

            def time_since(self, other: Any) -> float:
                return 250.0

        self.Device, self.Context, self.Stream, self.Event = Device, Context, Stream, Event
        self._allocation = Allocation

    def act(self, name: str, *arguments: Any) -> None:
        code = self.note(name, *arguments)
        if code:
            kind = PycudaMemoryError if code == Error.MEMORY_ALLOCATION else PycudaError
            raise kind(f"{name} failed: in words")

    def init(self) -> None:
        self.act("init")

    def get_driver_version(self) -> int:
        return 13020

    def mem_get_info(self) -> tuple[int, int]:
        self.act("mem_get_info")
        return 1000, 3000

    def mem_alloc(self, size: int) -> Any:
        self.act("mem_alloc", size)
        return self._allocation(size)

    def pagelocked_empty(self, size: int, dtype: str) -> Any:
        self.act("pagelocked_empty", size)
        stub = self

        class Base:
            """What owns the array's memory."""

            def __init__(self) -> None:
                self.raw = np.empty(size, dtype)
                self.__array_interface__ = self.raw.__array_interface__

            def free(self) -> None:
                stub.act("free_host")

        return np.asarray(Base())

    def memcpy_htod_async(self, target: int, source: Any, stream: Any) -> None:
        self.act("memcpy_htod_async", stream.handle)
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target: Any, source: int, stream: Any) -> None:
        self.act("memcpy_dtoh_async", stream.handle)
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def memcpy_dtod_async(self, target: int, source: int, size: int, stream: Any) -> None:
        self.act("memcpy_dtod_async", stream.handle)
        ctypes.memmove(target, source, size)

    def memset_d8_async(self, target: int, value: int, size: int, stream: Any) -> None:
        self.act("memset_d8_async", stream.handle)
        ctypes.memset(target, value, size)


class StubDriver(Stub):
    """The library libcuda.so.1 through ctypes: functions return a status."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            plain = [each.value for each in arguments if hasattr(each, "value")]
            status = self.note(name, *plain)
            written = {
                "cuCtxGetCurrent": CONTEXT,
                "cuStreamEndCapture": GRAPH,
                "cuGraphInstantiateWithFlags": EXECUTABLE,
                "cuGetErrorName": b"CUDA_ERROR_OF_STUB",
                "cuGetErrorString": b"in words",
            }
            if name in written and not status:
                target = next(each for each in arguments if hasattr(each, "_obj"))
                target._obj.value = written[name]
            return status

        return function
