"""One exported bundle for the tests that only read it, and a copy for those that change it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from awq_edge.artifacts.directories import Bundle
from tests.tensorrt.engine_bundles import RTX, export_for, tiny_checkpoint


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a tiny model for TensorRT for RTX, with plugin nodes."""
    folder = tmp_path_factory.mktemp("engine")
    return export_for(tiny_checkpoint(folder), folder / "bundle", RTX).path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A copy of it; the cache folder is the test's own."""
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    return Bundle.open(Path(shutil.copytree(exported, tmp_path / "bundle")))
