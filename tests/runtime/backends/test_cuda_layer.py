"""The cuda session on the device layer in memory, which does queued work as late as CUDA may: what
it computes, what it waits for, and what it gives back whichever call fails."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import DeviceError
from awq_edge.runtime.backends.cuda import device_layer, weights
from awq_edge.runtime.backends.cuda.device_layer import LayerDevice
from awq_edge.runtime.backends.cuda.session import CudaSession
from awq_edge.runtime.session import SessionOptions
from tests.device.fake_device import FakeLayer
from tests.tiny_models import save_tiny_llama

from .host_kernels import HostDevice, HostKernels

IDS = [int(i) for i in np.random.default_rng(0).integers(4, 300, 60)]


class QueuedKernels(HostKernels):
    """Kernels that run when their stream is waited for. Structs are read when they are launched."""

    def __init__(self, layer: FakeLayer) -> None:
        super().__init__()
        self._layer = layer

    def call(self, name: str, *arguments: Any) -> None:
        given = [_copied(each) for each in arguments[:-1]]
        function = getattr(self, name.removeprefix("awq_edge_"))
        self._layer.queue(arguments[-1], lambda: function(*given))


def _copied(argument: Any) -> Any:
    is_struct = isinstance(argument, ctypes.Structure)
    return type(argument).from_buffer_copy(argument) if is_struct else argument


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("torch", reason="the bundle is made with it")
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama", head_size=32)
    recipe = awq_edge.load_recipe("cuda").overridden({"export.prefill_chunk": 32})
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    return awq_edge.export(model, out, recipe.asking(method="rtn", group_size=32))


def opened(bundle: Bundle, **layer: Any) -> tuple[CudaSession, FakeLayer]:
    made = FakeLayer(**layer)
    session = CudaSession(bundle, SessionOptions(), LayerDevice(made), QueuedKernels(made))
    return session, made


def test_it_computes_what_the_host_does(bundle: Bundle) -> None:
    """Prefill, decode, greedy steps, a copied cache: the same kernels, so the same bits."""
    session, layer = opened(bundle)
    host = CudaSession(bundle, SessionOptions(), HostDevice(), HostKernels())
    found, expected = [], []
    for each, results in ((session, found), (host, expected)):
        results.append(each.prefill(IDS[:50]))
        results.append(each.decode(IDS[50]))
        copy = each.copy_cache()
        results.append(np.array(each.greedy(IDS[51], 5)))
        each.truncate(10)
        each.restore_cache(copy)
        assert list(each.cached_ids) == IDS[:51]
        results.append(each.logits(IDS[51:], [0, 5, 8]))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert layer.graphs == 2  # the decode step, and the greedy one
    session.close()
    assert layer.held == {}
    assert np.isfinite(found[0]).all()  # a result outlives the session's memory


def test_everything_is_given_back_whichever_call_fails(bundle: Bundle) -> None:
    """Each call of opening, one step and closing fails once."""
    session, layer = opened(bundle)
    session.decode(IDS[0])
    session.close()
    for number in range(1, len(layer.calls) + 1):
        failing = FakeLayer(fail_at=number)
        raised = False
        try:
            device = LayerDevice(failing)
            with CudaSession(bundle, SessionOptions(), device, QueuedKernels(failing)) as one:
                one.decode(IDS[0])  # type: ignore[attr-defined]
        except DeviceError as error:
            raised = "as the test wants it" in str(error)
        # What fails on the way to releasing everything is no reason to stop.
        assert raised or failing.failed_call == "activate"
        assert failing.held == {}, failing.failed_call


def test_weights_go_through_a_small_buffer(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = opened(bundle)[0].prefill(IDS[:5])
    monkeypatch.setattr(weights, "_PIECE_BYTES", 1000)
    session, layer = opened(bundle)
    np.testing.assert_array_equal(session.prefill(IDS[:5]), expected)
    size = bundle.manifest.files["model.weights"].size
    assert layer.calls.count("copy_to_device") >= size // 1000


def test_memory_that_is_not_page_locked_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_layer, "_STAGING_BYTES", 100)
    device = LayerDevice(FakeLayer())
    address = device.zeros(4096)
    values = np.arange(7 * 130, dtype=np.uint8).reshape(7, 130)
    found = np.zeros_like(values)
    for pitch in (None, 512):
        device.upload(address, values, pitch)
        device.download(found, address, pitch)
        np.testing.assert_array_equal(found, values)
        found[:] = 0
    row = np.zeros(130, np.uint8)
    device.download(row, address + 3 * 512)
    np.testing.assert_array_equal(row, values[3])


def test_a_session_imports_no_torch(bundle: Bundle) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "import awq_edge.runtime.backends.cuda.opening\n"
        "from awq_edge.artifacts.directories import Bundle\n"
        "from awq_edge.runtime.backends.cuda.session import CudaSession\n"
        "from awq_edge.runtime.session import SessionOptions\n"
        "from tests.runtime.backends.host_kernels import HostDevice, HostKernels\n"
        "bundle = Bundle.open(Path(sys.argv[1]))\n"
        "session = CudaSession(bundle, SessionOptions(), HostDevice(), HostKernels())\n"
        "session.prefill([5, 6, 7]); session.decode(8); session.greedy(9, 2)\n"
        "assert 'torch' not in sys.modules, sorted(sys.modules)\n"
    )
    root = Path(awq_edge.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script, str(bundle.path)], check=True, cwd=root)


def test_the_device_of_torch_copies_what_the_host_does(bundle: Bundle) -> None:
    """Its memory and copies on the CPU; stream and graphs are the host's stand-in."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from awq_edge.runtime.backends.cuda.device_torch import CudaDevice

    class OnCpu(HostDevice, CudaDevice):
        octets, upload, download = CudaDevice.octets, CudaDevice.upload, CudaDevice.download
        zeros, free, copy, close = (
            CudaDevice.zeros,
            CudaDevice.free,
            CudaDevice.copy,
            CudaDevice.close,
        )

        def __init__(self) -> None:
            HostDevice.__init__(self)
            self._device, self._addresses, self._pinned = torch.device("cpu"), [], []

    results = []
    for device in (OnCpu(), HostDevice()):
        session = CudaSession(bundle, SessionOptions(), device, HostKernels())
        session.prefill(IDS[:40])
        copy = session.copy_cache()
        ids = session.greedy(IDS[40], 3)
        session.reset()
        session.restore_cache(copy)
        results.append((ids, session.decode(IDS[40]), copy.parts))
        session.close()
    (ids, logits, parts), (expected_ids, expected, expected_parts) = results
    assert ids == expected_ids
    np.testing.assert_array_equal(logits, expected)
    for name, part in expected_parts.items():
        np.testing.assert_array_equal(parts[name], part)
