"""Both device layers over stubs of their packages, and the choice between them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_edge.device import layer, layer_cuda_python, layer_pycuda
from awq_edge.device.buffers import DeviceBuffer, Owned, host_buffer
from awq_edge.device.cuda_driver import compute_capability
from awq_edge.device.layer import DeviceLayer, Gpu, open_layer
from awq_edge.errors import (
    AwqEdgeError,
    ConfigError,
    DeviceError,
    ResourceError,
    RuntimeUnavailableError,
)

from . import stub_cuda
from .stub_cuda import EXECUTABLE, GRAPH, STREAM, Stub, StubDriver, StubPycuda, StubRuntime


@dataclass
class Case:
    """A layer, and the stubs below it. names: a method -> the stub's call that it makes."""

    open: Callable[[], DeviceLayer]
    stubs: tuple[Stub, ...]
    names: dict[str, str]

    def fail(self, method: str, code: int) -> None:
        for stub in self.stubs:
            stub.fail[self.names[method]] = code

    def calls(self, method: str) -> list[tuple[Any, ...]]:
        return [each for stub in self.stubs for each in stub.named(self.names[method])]


_RUNTIME = {
    "memory": "cudaMemGetInfo",
    "allocate": "cudaMalloc",
    "free": "cudaFree",
    "allocate_host": "cudaHostAlloc",
    "free_host": "cudaFreeHost",
    "create_stream": "cudaStreamCreateWithFlags",
    "synchronize": "cudaStreamSynchronize",
    "copy_to_device": "cudaMemcpyAsync",
    "copy_to_host": "cudaMemcpyAsync",
    "copy_on_device": "cudaMemcpyAsync",
    "clear": "cudaMemsetAsync",
    "create_event": "cudaEventCreate",
    "record_event": "cudaEventRecord",
    "elapsed_seconds": "cudaEventSynchronize",
    "begin_capture": "cudaStreamBeginCapture",
    "end_capture": "cudaStreamEndCapture",
    "launch_graph": "cudaGraphLaunch",
    "destroy_graph": "cudaGraphExecDestroy",
    "instantiate": "cudaGraphInstantiate",
    "destroy_template": "cudaGraphDestroy",
}
_PYCUDA = {
    "memory": "mem_get_info",
    "allocate": "mem_alloc",
    "free": "free",
    "allocate_host": "pagelocked_empty",
    "free_host": "free_host",
    "create_stream": "Stream",
    "synchronize": "synchronize",
    "copy_to_device": "memcpy_htod_async",
    "copy_to_host": "memcpy_dtoh_async",
    "copy_on_device": "memcpy_dtod_async",
    "clear": "memset_d8_async",
    "create_event": "Event",
    "record_event": "record",
    "elapsed_seconds": "synchronize_event",
    "begin_capture": "cuStreamBeginCapture_v2",
    "end_capture": "cuStreamEndCapture",
    "launch_graph": "cuGraphLaunch",
    "destroy_graph": "cuGraphExecDestroy",
    "instantiate": "cuGraphInstantiateWithFlags",
    "destroy_template": "cuGraphDestroy",
}
METHODS = [name for name in _RUNTIME if name not in ("instantiate", "destroy_template")]


@pytest.fixture(params=["cuda-python", "pycuda"])
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    if request.param == "cuda-python":
        runtime = StubRuntime()
        monkeypatch.setattr(layer_cuda_python, "_runtime", lambda: runtime)
        return Case(layer_cuda_python.CudaPythonLayer, (runtime,), _RUNTIME)
    pycuda, driver = StubPycuda(), StubDriver()
    monkeypatch.setattr(layer_pycuda, "_pycuda_driver", lambda: pycuda)
    monkeypatch.setattr(layer_pycuda, "_package_version", lambda: "2026.1")
    monkeypatch.setattr(layer_pycuda.ctypes, "CDLL", lambda _name: driver)
    return Case(layer_pycuda.PyCudaLayer, (pycuda, driver), _PYCUDA)


def use(opened: DeviceLayer) -> dict[str, Callable[[], Any]]:
    """A call of every method, on what it needs."""
    stream = opened.create_stream()
    address = opened.allocate(512)
    host = opened.allocate_host(512)
    begin, end = opened.create_event(), opened.create_event()
    return {
        "memory": opened.memory,
        "allocate": lambda: opened.allocate(1024),
        "free": lambda: opened.free(address),
        "allocate_host": lambda: opened.allocate_host(1024),
        "free_host": lambda: opened.free_host(host),
        "create_stream": opened.create_stream,
        "synchronize": lambda: opened.synchronize(stream),
        "copy_to_device": lambda: opened.copy_to_device(address, host, stream),
        "copy_to_host": lambda: opened.copy_to_host(host, address, stream),
        "copy_on_device": lambda: opened.copy_on_device(address, address + 256, 256, stream),
        "clear": lambda: opened.clear(address, 256, stream),
        "create_event": opened.create_event,
        "record_event": lambda: opened.record_event(begin, stream),
        "elapsed_seconds": lambda: opened.elapsed_seconds(begin, end),
        "begin_capture": lambda: opened.begin_capture(stream),
        "end_capture": lambda: opened.end_capture(stream),
        "launch_graph": lambda: opened.launch_graph(EXECUTABLE, stream),
        "destroy_graph": lambda: opened.destroy_graph(EXECUTABLE),
    }


def test_what_gpu_it_is(case: Case) -> None:
    opened = case.open()
    assert opened.gpu == Gpu("NVIDIA Stub", 87, True)
    assert opened.versions["cuda-driver"] == "13.2"
    assert opened.memory() == (1000, 3000)


def test_bytes_go_there_and_back(case: Case) -> None:
    opened = case.open()
    stream, device, other = opened.create_stream(), opened.allocate(512), opened.allocate(512)
    assert stream == STREAM
    host = opened.allocate_host(512)
    assert (host.dtype, host.shape) == (np.dtype(np.uint8), (512,))
    sent = np.arange(512).astype(np.uint8)
    host[:] = sent
    opened.copy_to_device(device, host, stream)
    opened.copy_on_device(other, device, 512, stream)
    opened.clear(other, 10, stream)
    host[:] = 99
    opened.copy_to_host(host[:300], other, stream)  # only so many
    opened.synchronize(stream)
    assert (host[:10] == 0).all()
    assert (host[10:300] == sent[10:300]).all()
    assert (host[300:] == 99).all()


def test_a_graph_is_instantiated_and_its_template_destroyed(case: Case) -> None:
    opened = case.open()
    stream = opened.create_stream()
    opened.begin_capture(stream)
    assert opened.end_capture(stream) == EXECUTABLE
    assert case.calls("destroy_template") == [(GRAPH,)]
    opened.launch_graph(EXECUTABLE, stream)
    assert case.calls("launch_graph") == [(EXECUTABLE, STREAM)]
    case.fail("instantiate", 700)
    with pytest.raises(DeviceError):
        opened.end_capture(stream)
    assert len(case.calls("destroy_template")) == 2


def test_seconds_between_events(case: Case) -> None:
    opened = case.open()
    begin, end = opened.create_event(), opened.create_event()
    assert opened.elapsed_seconds(begin, end) == 0.25
    assert case.calls("elapsed_seconds")  # waits first
    opened.destroy_event(begin)


@pytest.mark.parametrize("method", METHODS)
def test_every_call_is_checked(case: Case, method: str) -> None:
    call = use(case.open())[method]
    case.fail(method, 700)
    with pytest.raises(DeviceError, match=r"in words.*CUDA error (700|999).*run again with"):
        call()


@pytest.mark.parametrize("method", ["allocate", "allocate_host"])
def test_memory_that_runs_out(case: Case, method: str) -> None:
    call = use(case.open())[method]
    case.fail(method, 2)
    with pytest.raises(ResourceError, match=r"ran out \(.* of 1,024 bytes: .*smaller --context"):
        call()


def test_cuda_python_without_driver_or_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {35: "no NVIDIA driver here, or one that is older", 100: "no NVIDIA GPU"}
    for code, message in answers.items():
        runtime = StubRuntime()
        runtime.fail["cudaGetDeviceCount"] = code
        monkeypatch.setattr(layer_cuda_python, "_runtime", lambda found=runtime: found)
        with pytest.raises(RuntimeUnavailableError, match=message):
            layer_cuda_python.CudaPythonLayer()


def test_pycuda_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pycuda = StubPycuda()
    pycuda.devices = 0
    monkeypatch.setattr(layer_pycuda, "_pycuda_driver", lambda: pycuda)
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA GPU"):
        layer_pycuda.PyCudaLayer()


def test_pycuda_gives_its_context_back_once(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    opened = case.open()
    opened.activate()
    opened.close()
    opened.close()
    names = [name for stub in case.stubs for name, _ in stub.calls]
    if isinstance(case.stubs[0], StubPycuda):
        assert names.count("pop") == names.count("detach") == 1
        (handle,) = next(each for name, each in case.stubs[1].calls if name == "cuCtxSetCurrent")
        assert handle == stub_cuda.CONTEXT
    else:
        assert ("cudaSetDevice", (0,)) in case.stubs[0].calls


def test_layers_have_the_methods_of_the_protocol() -> None:
    wanted = {
        name: inspect.signature(member)
        for name, member in vars(DeviceLayer).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    assert len(wanted) > 15
    for found in (layer_cuda_python.CudaPythonLayer, layer_pycuda.PyCudaLayer):
        for name, signature in wanted.items():
            assert inspect.signature(getattr(found, name)) == signature, name


def test_functions_that_cuda_python_is_asked_for_exist() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    source = Path(layer_cuda_python.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"\b(cuda[A-Z]\w+)", source))
    assert len(names) > 25
    members = [runtime, runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode]
    members.append(runtime.cudaDeviceAttr)
    for name in names:
        assert any(hasattr(each, name) for each in members), name


def test_the_real_package_on_a_machine_without_a_gpu() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    if compute_capability() is not None:
        pytest.skip(reason="there is a GPU: tests/runtime/backends/gpu")
    with pytest.raises(RuntimeUnavailableError, match=r"NVIDIA (driver|GPU) here.*\(CUDA error"):
        open_layer("cuda-python")


def test_the_real_package_takes_addresses_and_handles_as_integers() -> None:
    """Where there is no driver it says so, and nothing of the arguments."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings")
    if compute_capability() is not None:
        pytest.skip(reason="there is a GPU: such addresses would be used")
    layer_of = object.__new__(layer_cuda_python.CudaPythonLayer)
    layer_of._cuda = runtime
    host = np.zeros(16, np.uint8)
    calls: list[Callable[[], Any]] = [
        lambda: layer_of.memory(),
        lambda: layer_of.allocate(64),
        lambda: layer_of.free(256),
        lambda: layer_of.allocate_host(64),
        lambda: layer_of.free_host(host),
        lambda: layer_of.create_stream(),
        lambda: layer_of.destroy_stream(5),
        lambda: layer_of.synchronize(5),
        lambda: layer_of.copy_to_device(256, host, 5),
        lambda: layer_of.copy_to_host(host, 256, 5),
        lambda: layer_of.copy_on_device(256, 512, 16, 5),
        lambda: layer_of.clear(256, 16, 5),
        lambda: layer_of.create_event(),
        lambda: layer_of.destroy_event(5),
        lambda: layer_of.record_event(5, 6),
        lambda: layer_of.elapsed_seconds(5, 6),
        lambda: layer_of.begin_capture(5),
        lambda: layer_of.end_capture(5),
        lambda: layer_of.launch_graph(5, 6),
        lambda: layer_of.destroy_graph(5),
    ]
    for call in calls:
        with pytest.raises(RuntimeUnavailableError, match=r"NVIDIA (driver|GPU) here"):
            call()


# ---- the choice


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The layers whose package is there."""
    names: set[str] = set()
    monkeypatch.setattr(layer, "is_installed", names.__contains__)
    monkeypatch.setattr(layer_cuda_python, "CudaPythonLayer", lambda: "cuda-python")
    monkeypatch.setattr(layer_pycuda, "PyCudaLayer", lambda: "pycuda")
    monkeypatch.delenv(layer.ENVIRONMENT_VARIABLE, raising=False)
    return names


def test_cuda_python_is_preferred(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed.add("pycuda")
    assert open_layer() == "pycuda"
    installed.add("cuda-python")
    assert open_layer() == "cuda-python"
    monkeypatch.setenv(layer.ENVIRONMENT_VARIABLE, "pycuda")
    assert open_layer() == "pycuda"
    assert open_layer("cuda-python") == "cuda-python"


def test_no_layer_is_installed(installed: set[str]) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'awq-edge\[rtx\]' on a PC"):
        open_layer()
    with pytest.raises(RuntimeUnavailableError, match="layer pycuda is asked for and its package"):
        open_layer("pycuda")


def test_an_unknown_layer(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(layer.ENVIRONMENT_VARIABLE, "cupy")
    with pytest.raises(ConfigError, match="AWQ_EDGE_DEVICE_LAYER=cupy: no such device layer; give"):
        open_layer()


# ---- buffers


def test_buffers_are_aligned_and_typed_for_other_libraries(case: Case) -> None:
    opened, owned = case.open(), Owned()
    buffer = DeviceBuffer(opened, 100, owned)
    assert buffer.size == 256
    interface = buffer.typed((4, 16), np.float16).__cuda_array_interface__
    assert interface["data"] == (buffer.address, False)
    assert (interface["shape"], interface["typestr"]) == ((4, 16), "<f2")
    host = host_buffer(opened, 1, owned)
    assert host.nbytes == 256 and (host == 0).all()
    owned.release()
    assert len(case.calls("free")) == len(case.calls("free_host")) == 1
    owned.release()  # once only
    assert len(case.calls("free")) == 1


def test_one_release_that_fails_does_not_stop_the_others() -> None:
    released, owned = [], Owned()

    def failing(number: int) -> Callable[[], None]:
        def release() -> None:
            released.append(number)
            if number in (1, 2):
                raise DeviceError(f"{number} failed")

        return release

    for number in range(4):
        owned.add(failing(number))
    with pytest.raises(AwqEdgeError, match="2 failed"):
        owned.release()
    assert released == [3, 2, 1, 0]
