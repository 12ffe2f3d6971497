"""A TensorRT on a device that is not there, kernels that compute nothing, and bundles to build."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.kernels.kernels import ENVIRONMENT_VARIABLE
from tests.tensorrt.engine_bundles import JETPACK_6, JETPACK_7, export_for, tiny_checkpoint

FAKE = Path(__file__).with_name("fake")
VERSIONS = {JETPACK_7: "10.16.2.10", JETPACK_6: "10.3.0.30"}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel library that computes nothing."""
    from tests.tensorrt.plugin_build import build_recording_kernels

    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip(reason="needs gcc")
    return build_recording_kernels(gcc, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def device_bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By recipe: bundles for TensorRT on a Jetson."""
    folder = tmp_path_factory.mktemp("device")
    return {name: export_for(checkpoint, folder / name, name).path for name in VERSIONS}


@pytest.fixture
def cache(tmp_path: Path, kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, of this test alone, and the kernels in place."""
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(kernels))
    return tmp_path / "cache"


Jetson = Callable[..., Bundle]


@pytest.fixture
def jetson(
    device_bundles: dict[str, Path],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Jetson]:
    """Make this machine a Jetson with the TensorRT of a recipe; the bundle for it.

    fails, version: of the fake TensorRT.
    """

    def make(recipe: str, fails: str = "", version: str = "") -> Bundle:
        sys.modules.pop("tensorrt", None)  # it has read its version when it was imported
        monkeypatch.syspath_prepend(str(FAKE))
        monkeypatch.setenv("PYTHONPATH", str(FAKE))
        monkeypatch.setenv("FAKE_TENSORRT", fails)
        monkeypatch.setenv("FAKE_TENSORRT_VERSION", version or VERSIONS[recipe])
        monkeypatch.setenv("FAKE_TENSORRT_RECORD", str(tmp_path / "record.json"))
        monkeypatch.setattr("awq_edge.tensorrt.builder.targets.compute_capability", lambda: 87)
        monkeypatch.setattr("awq_edge.tensorrt.builder.build.device_name", lambda: "Orin (nvgpu)")
        out = tmp_path / "bundle"
        if not out.exists():
            shutil.copytree(device_bundles[recipe], out)
        return Bundle.open(out)

    yield make
    sys.modules.pop("tensorrt", None)


@pytest.fixture
def record(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """What the fake TensorRT was asked."""
    return lambda: json.loads((tmp_path / "record.json").read_text())
