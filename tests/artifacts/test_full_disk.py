"""The disk is full at the n-th write: one line, nothing under the final name, and a next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import awq_edge
from awq_edge.errors import ResourceError
from awq_edge.process.staging import is_temporary
from awq_edge.quantizer.run_options import RunOptions
from tests.full_disk import FullDisk

from ..quantizer.conftest import build_model, save_model

RECIPE = awq_edge.load_recipe(method="rtn", group_size=32)
MOMENTS = range(0, 400, 9)  # every so many writes; the runs end before the last of them


def _export(model: Path, out: Path, run: RunOptions) -> bytes:
    awq_edge.export(model, out, RECIPE, run=run)
    return (out / "model.onnx.data").read_bytes()


def _quantize(model: Path, out: Path, run: RunOptions) -> bytes:
    awq_edge.quantize(model, out, RECIPE, run=run)
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "empty folder"])
@pytest.mark.parametrize("make", [_export, _quantize])
def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Path, RunOptions], bytes],
    is_there: bool,
) -> None:
    model = save_model(
        build_model("llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2),
        tmp_path / "model",
    )
    whole = make(model, tmp_path / "whole", RunOptions())
    folder = tmp_path / "disk"
    (folder / "out" if is_there else folder).mkdir(parents=True)
    failures = 0
    weights = b""
    with monkeypatch.context() as patched:
        disk = FullDisk(folder, patched)
        for moment in MOMENTS:
            disk.left, disk.failed = moment, False
            try:
                weights = make(model, folder / "out", RunOptions(resume=moment % 2 == 0))
            except ResourceError as error:
                assert "free some space" in str(error)
                assert disk.failed
                failures += 1
            else:
                break
            left = [path for path in folder.iterdir() if not is_temporary(path.name)]
            assert left == ([folder / "out"] if is_there else [])
            if is_there:
                assert all(is_temporary(path.name) for path in (folder / "out").iterdir())
    assert failures > 1 and not disk.failed
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert not [path for path in (folder / "out").iterdir() if is_temporary(path.name)]
    assert weights == whole
