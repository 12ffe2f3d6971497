"""Device layers and TensorRT sessions on a GPU: bytes, graphs, and logits against onnxruntime.

    python -m pytest -m gpu tests/tensorrt/session/gpu/test_tensorrt.py

Needs the [host] extra for the bundles, kernels for the plugin (AWQ_EDGE_KERNELS), and [rtx] on a
PC; on a Jetson the system's TensorRT and [jetson].
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.device.bandwidth import measure_copy_bandwidth
from awq_edge.device.buffers import DeviceBuffer, Owned, host_buffer
from awq_edge.device.cuda_driver import compute_capability
from awq_edge.device.layer import DeviceLayer, is_installed, open_layer
from awq_edge.errors import ResourceError
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import SessionOptions
from awq_edge.tensorrt.session.contexts import GRAPHS_VARIABLE

CAPABILITY = compute_capability()
if CAPABILITY is None:
    pytest.skip(reason="there is no NVIDIA GPU", allow_module_level=True)

pytestmark = pytest.mark.gpu
# Of the largest logit: float16 activations against float32 ones, as in test_cuda.py.
TOLERANCE = 2e-2
SIZE = 1 << 20
RECIPES = {"tensorrt-rtx": "rtx-4070-laptop-8gb", "tensorrt": "jetson-orin-nano-8gb"}
MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
RTX_HAS = (86, 89, 120, 121)  # and 75, whose 4-bit weights it does not compile
IDS = [int(each) for each in np.random.default_rng(2).integers(4, 300, 90)]


# ---- the device layers


@pytest.fixture(params=["cuda-python", "pycuda"])
def layer(request: pytest.FixtureRequest) -> Iterator[DeviceLayer]:
    if not is_installed(request.param):
        pytest.skip(reason=f"{request.param} is not installed")
    opened = open_layer(request.param)
    yield opened
    opened.close()


def test_the_gpu_is_the_drivers(layer: DeviceLayer) -> None:
    assert layer.gpu.compute_capability == CAPABILITY and layer.gpu.name
    free, total = layer.memory()
    assert 0 < free <= total


def test_a_graph_of_copies_moves_what_is_there_at_its_launch(layer: DeviceLayer) -> None:
    owned = Owned()
    stream = layer.create_stream()
    owned.add(lambda: layer.destroy_stream(stream))
    sent, got = (host_buffer(layer, SIZE, owned) for _ in range(2))
    first, second = (DeviceBuffer(layer, SIZE, owned) for _ in range(2))
    layer.begin_capture(stream)
    layer.copy_to_device(first.address, sent, stream)
    layer.clear(second.address, SIZE, stream)
    layer.copy_on_device(second.address, first.address, SIZE // 2, stream)
    layer.copy_to_host(got, second.address, stream)
    graph = layer.end_capture(stream)
    owned.add(lambda: layer.destroy_graph(graph))
    for seed in range(3):
        sent[:] = np.random.default_rng(seed).integers(1, 256, SIZE).astype(np.uint8)
        got[:] = 99
        layer.launch_graph(graph, stream)
        layer.synchronize(stream)
        assert (got[: SIZE // 2] == sent[: SIZE // 2]).all() and (got[SIZE // 2 :] == 0).all()
    owned.release()


def test_memory_is_taken_and_given_back(layer: DeviceLayer) -> None:
    before, _ = layer.memory()
    address = layer.allocate(256 << 20)
    assert address % 256 == 0
    during, _ = layer.memory()
    layer.free(address)
    after, _ = layer.memory()
    # Other programs may allocate meanwhile.
    assert before - during > 200 << 20 and after - during > 200 << 20
    with pytest.raises(ResourceError, match="memory ran out"):
        layer.allocate(1 << 50)
    layer.free(layer.allocate(1024))  # the error is not a lasting one


def test_bandwidth(layer: DeviceLayer) -> None:
    stream = layer.create_stream()
    rate = measure_copy_bandwidth(layer, stream)
    layer.destroy_stream(stream)
    assert rate is None or 10e9 < rate < 20e12


# ---- sessions


@pytest.fixture(scope="module", params=list(RECIPES))
def runtime(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("onnx_graphsurgeon", reason="needs the [host] extra")
    if importlib.util.find_spec(MODULES[request.param]) is None:
        pytest.skip(reason=f"{MODULES[request.param]} is not installed")
    if request.param == "tensorrt-rtx" and CAPABILITY not in RTX_HAS:
        pytest.skip(reason=f"TensorRT for RTX has no SM{CAPABILITY}")
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, symmetric so that every form of the linear takes it."""
    out = tmp_path_factory.mktemp("checkpoint") / "demo"
    return awq_edge.quantize(
        "demo", out, awq_edge.load_recipe(method="rtn", scheme="symmetric", lm_head_bits=16)
    ).path


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """onnxruntime's logits after each of IDS, float32."""
    out = tmp_path_factory.mktemp("reference") / "demo"
    recipe = awq_edge.load_recipe(accuracy_level=0, activation_dtype="float32", lm_head_bits=16)
    bundle = awq_edge.export(checkpoint, out, recipe)
    with open_session(bundle, SessionOptions()) as session:  # type: ignore[attr-defined]
        logits: np.ndarray = session.logits(IDS, range(len(IDS)))
    return logits


@pytest.fixture(scope="module", params=["plugin", "native"])
def bundle(
    request: pytest.FixtureRequest,
    runtime: str,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """Prefill chunks of 32 tokens: IDS is three of them."""
    recipe = awq_edge.load_recipe(RECIPES[runtime]).overridden({"export.prefill_chunk": 32})
    out = tmp_path_factory.mktemp("bundle") / "demo"
    recipe = recipe.asking(linear=request.param, attention=request.param, lm_head_bits=16)
    return awq_edge.export(checkpoint, out, recipe)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_logits_are_those_of_onnxruntime(bundle: Bundle, expected: np.ndarray) -> None:
    with open_session(bundle, SessionOptions()) as session:  # type: ignore[attr-defined]
        assert error(session.logits(IDS, range(len(IDS))), expected) < TOLERANCE
        for length in (1, 2, 16, 17, 32, 33, 70):  # of either profile, and of both
            session.reset()
            assert error(session.prefill(IDS[:length]), expected[length - 1]) < TOLERANCE, length
        for place in range(70, len(IDS)):
            assert error(session.decode(IDS[place]), expected[place]) < TOLERANCE, place
        session.truncate(20)
        assert error(session.prefill(IDS[20:40]), expected[39]) < TOLERANCE


def test_a_graph_computes_what_single_calls_compute(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for graphs in ("1", "0"):
        monkeypatch.setenv(GRAPHS_VARIABLE, graphs)
        with open_session(bundle, SessionOptions()) as session:  # type: ignore[attr-defined]
            session.prefill(IDS[:40])
            found.append(np.stack([session.decode(each) for each in IDS[40:60]]))
    assert error(found[0], found[1]) < 1e-3


def test_memory_comes_back(bundle: Bundle) -> None:
    sizes = []
    for _ in range(3):
        with open_session(bundle, SessionOptions()) as session:  # type: ignore[attr-defined]
            session.prefill(IDS)
            measured = session.memory.measured
            assert measured is not None
            assert measured.before <= measured.loaded <= measured.peak <= measured.total
            sizes.append(measured.before)
    # The first session loads CUDA's modules, which stay.
    assert sizes[2] - sizes[1] < 32 << 20
