"""From a bundle to a TensorRT session, and `awq-edge run` on it: machine and TensorRT are fakes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle, FileEntry
from awq_edge.errors import ArtifactError, ConfigError, DeviceError, RuntimeUnavailableError
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import SessionOptions
from awq_edge.tensorrt.engines import Engine, EngineManifest
from awq_edge.tensorrt.engines.manifest import BuildFigures
from awq_edge.tensorrt.session import opening
from tests.device.fake_device import FakeLayer
from tests.tiny_models import save_tiny_llama

from .fake_tensorrt import FakeEngine, Range, TinyModel, fake_module


@pytest.fixture(scope="module", params=["tensorrt-rtx", "tensorrt"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A quantized bundle, with plugin nodes; prefill chunks of 32 tokens."""
    pytest.importorskip("torch", reason="needs the [host] extra")
    model = save_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama", head_size=32)
    name = {"tensorrt-rtx": "rtx-4070-laptop-8gb", "tensorrt": "jetson-orin-nano-8gb"}
    recipe = awq_edge.load_recipe(name[request.param]).overridden({"export.prefill_chunk": 32})
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    return awq_edge.export(model, out, recipe.asking(method="rtn", group_size=32))


@dataclasses.dataclass
class Machine:
    """What the machine of a test has. found: engines that are there; built: that were asked for."""

    layer: FakeLayer
    engine: Engine
    found: bool = True
    built: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    order: list[str] = dataclasses.field(default_factory=list)


@pytest.fixture
def machine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A GPU of SM87 with an engine of the bundle, and TensorRT."""
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("awq_edge.device.bandwidth._COPY_BYTES", 1 << 16)
    manifest = bundle.manifest
    model = TinyModel(
        manifest.vocab_size, manifest.num_layers, manifest.num_kv_heads, manifest.head_size
    )
    profiles = (Range((1, 16), 16), Range((17, 32), 32))
    rtx = manifest.runtime == "tensorrt-rtx"
    here = Machine(FakeLayer(capability=87), _engine(tmp_path, manifest.runtime))
    made = FakeEngine(here.layer, model, profiles, manifest.context, rtx=rtx)

    def find(_bundle: Bundle, runtime: str, version: str, sm: str) -> Engine:
        assert (runtime, sm) == (manifest.runtime, "SM87")
        assert version == ("1.7.1.116" if rtx else "10.16.2.10")
        if not here.found:
            raise ArtifactError("there is none")
        return here.engine

    def build(_bundle: Bundle, *, runtime: str, target: str, observer: Any) -> Engine:
        assert here.layer.calls == []  # CUDA takes nothing yet
        here.built.append((runtime, target))
        observer(0, 1, 0.25, "SM87: parsing")
        observer(0, 1, 1.0, "SM87: done")
        return here.engine

    def register(_plugin: Any, _tensorrt: Any) -> None:
        here.order.append("register")

    def deserialize(_engine: Engine, _tensorrt: Any, _log: Any) -> tuple[Any, Any]:
        here.order.append("deserialize")
        return object(), made

    monkeypatch.setattr("awq_edge.tensorrt.engines.find_engine", find)
    monkeypatch.setattr("awq_edge.tensorrt.builder.build_engine", build)
    monkeypatch.setattr("awq_edge.tensorrt.engines.register_plugins", register)
    monkeypatch.setattr("awq_edge.tensorrt.engines.deserialize", deserialize)
    monkeypatch.setattr("awq_edge.tensorrt.engines.TensorrtLog", lambda _trt: _Log())
    monkeypatch.setattr(opening, "compute_capability", lambda: 87)
    monkeypatch.setattr(opening, "choose_layer", lambda: "fake")
    monkeypatch.setattr(opening, "open_layer", lambda: here.layer)
    monkeypatch.setattr(opening, "load_tensorrt", lambda _name: fake_module(rtx=rtx))
    return here


class _Log:
    def reason(self) -> str:
        return "no reason"


def _engine(folder: Path, runtime: str) -> Engine:
    (folder / "model.engine").write_bytes(b"an engine")
    manifest = EngineManifest(
        awq_edge_version="0",
        commit=None,
        model_name="tiny",
        runtime=runtime,
        runtime_version="0",
        sm="SM87",
        bundle_sha256="0" * 64,
        plugin=None,
        profiles=(),
        inputs=(),
        outputs=(),
        build=BuildFigures(seconds=1.0),
        files={"model.engine": FileEntry(size=9, sha256="1" * 64)},
    )
    return Engine(folder, manifest)


def test_an_engine_that_is_there_is_loaded(bundle: Bundle, machine: Machine) -> None:
    with open_session(bundle, SessionOptions()) as session:  # type: ignore[attr-defined]
        assert session.info.backend == bundle.manifest.runtime
        assert session.info.device == "Fake GPU"
        assert machine.order == ["register", "deserialize"] and machine.built == []
        assert session.prefill([1, 2, 3]).shape == (bundle.manifest.vocab_size,)
    assert machine.layer.held == {}


def test_an_engine_that_is_missing_is_built(bundle: Bundle, machine: Machine) -> None:
    machine.found = False
    seen: list[tuple[float, str]] = []
    options = SessionOptions(observer=lambda part, what: seen.append((part, what)))
    with open_session(bundle, options):  # type: ignore[attr-defined]
        assert machine.built == [(bundle.manifest.runtime, "SM87")]
    assert seen[0] == (0.25, "building the engine, SM87: parsing")
    assert seen[1][0] < 1 and seen[2:] == [(1.0, "")]  # the end comes once
    assert machine.layer.held == {}


def test_a_build_that_fails_leaves_nothing(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_bundle: Bundle, **_options: Any) -> Engine:
        raise DeviceError("it cannot be built")

    machine.found = False
    monkeypatch.setattr("awq_edge.tensorrt.builder.build_engine", build)
    with pytest.raises(DeviceError, match="cannot be built"):
        open_session(bundle, SessionOptions())
    assert machine.layer.calls == []


def test_impossible_options_are_told_before_anything_is_built(
    bundle: Bundle, machine: Machine
) -> None:
    machine.found = False
    too_long = bundle.manifest.context + 1
    with pytest.raises(ConfigError, match=f"--context {too_long}"):
        open_session(bundle, SessionOptions(context=too_long))
    assert machine.built == [] and machine.layer.calls == []


def test_a_machine_without_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "compute_capability", lambda: None)
    expected = (
        f"{bundle.path} was exported for runtime '{bundle.manifest.runtime}', which this machine "
        "cannot execute: it has no NVIDIA GPU, or no driver for it; build and run it on its target "
        "device, or export the model with `--runtime onnxruntime` to run it here"
    )
    with pytest.raises(RuntimeUnavailableError, match=f"^{re.escape(expected)}$"):
        open_session(bundle, SessionOptions())


def test_a_machine_without_tensorrt(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise RuntimeUnavailableError(f"{name} is not installed")

    monkeypatch.setattr(opening, "load_tensorrt", load)
    with pytest.raises(RuntimeUnavailableError, match=r"is not installed; build and run it on its"):
        open_session(bundle, SessionOptions())


def test_a_run_report_measures_the_gpu(bundle: Bundle, machine: Machine) -> None:
    """`awq-edge run` from the bundle to its report."""
    from awq_edge.run.run import run

    report = run(bundle.path, "Once upon a time", max_new_tokens=4, ignore_eos=True)
    assert len(report.result.token_ids) == 4
    assert (report.environment.device, report.environment.threads) == ("Fake GPU", None)
    assert report.environment.versions["fake-layer"] == "1"
    assert report.bandwidth.device_bytes_per_second is not None
    memory = report.memory
    measured, predicted = memory.measured, memory.predicted
    assert measured.device_before_load == 0 and measured.device_source == "cudaMemGetInfo"
    assert measured.device_after_load == measured.device_peak == machine.layer.peak - (2 << 16)
    assert measured.nvmap is None and memory.device == 1 << 30
    # This engine's weights take nothing of the fake: what is there is the cache.
    resident = predicted.weights + predicted.kv_cache
    assert memory.loaded_over_predicted == pytest.approx(predicted.kv_cache / resident)
    assert memory.peak_over_predicted == pytest.approx(
        measured.device_peak / (resident + predicted.activations)
    )
    assert machine.layer.held == {}
