"""The disk is full at the n-th write: one line, nothing under the final name, and a next run."""

from __future__ import annotations

import builtins
import errno
import io
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge.errors import ResourceError
from awq_edge.process.staging import is_temporary
from awq_edge.quantizer.run_options import RunOptions

from ..quantizer.conftest import build_model, save_model

RECIPE = awq_edge.load_recipe(method="rtn", group_size=32)
MOMENTS = range(1, 200, 9)  # every so many writes; the runs end before the last of them


class FullDisk:
    """Lets every write to a file below a folder fail from the n-th on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.failed = False
        self._folder = str(folder)
        self._open = io.open
        monkeypatch.setattr(io, "open", self.open)
        monkeypatch.setattr(builtins, "open", self.open)

    def open(self, file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        opened = self._open(file, mode, *arguments, **keywords)
        if mode[0] in "wxa" and str(file).startswith(self._folder):
            return _Counted(opened, self)
        return opened

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed = True
            raise OSError(errno.ENOSPC, "No space left on device")


class _Counted:
    """A file whose writes are counted; the rest is the file's own."""

    def __init__(self, file: Any, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        self._disk.spend()
        return self._file.write(data)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_disk_that_is_full_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(
        build_model("llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2),
        tmp_path / "model",
    )
    whole = awq_edge.export(model, tmp_path / "whole", RECIPE).manifest.files
    folder = tmp_path / "disk"
    folder.mkdir()
    failures = 0
    with monkeypatch.context() as patched:
        disk = FullDisk(folder, patched)
        for moment in MOMENTS:
            disk.left, disk.failed = moment, False
            try:
                run = RunOptions(resume=moment % 2 == 0)
                awq_edge.export(model, folder / "out", RECIPE, run=run)
            except ResourceError as error:
                assert "free some space" in str(error)
                assert disk.failed
                failures += 1
            else:
                break
            assert all(is_temporary(path.name) for path in folder.iterdir())
    assert failures > 1 and not disk.failed
    assert [path.name for path in folder.iterdir()] == ["out"]
    weights = awq_edge.Bundle.open(folder / "out").manifest.files["model.onnx.data"]
    assert weights == whole["model.onnx.data"]
