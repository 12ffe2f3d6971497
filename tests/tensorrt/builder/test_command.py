"""`awq-edge build` as a command: what it prints, and its JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from awq_edge.cli import main
from tests.tensorrt.engine_bundles import JETPACK_7

from .conftest import Jetson


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["awq-edge", "build", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_text_and_json(
    jetson: Jetson,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = jetson(JETPACK_7)
    report = tmp_path / "build.json"
    assert command(monkeypatch, bundle.path, "--json", report) == 0
    (line,) = capsys.readouterr().out.splitlines()
    engine = bundle.path / "engines" / "tensorrt-10.16.2.10-SM87" / "model.engine"
    assert line.startswith(f"{engine}: ")
    assert re.search(r": [\d.]+ k?B, built in .*, [\d.]+ [MG]B at its peak", line)
    told = json.loads(report.read_text())
    assert told["bundle"] == str(bundle.path)
    (described,) = told["engines"]
    assert described["engine"] == str(engine)
    assert described["path"] == str(engine.parent)
    assert described["manifest"] == json.loads((engine.parent / "manifest.json").read_text())
    assert command(monkeypatch, bundle.path, "--json", "-") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["engines"][0]["reused"]
    assert "there already" in printed.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "SM89"], "builds for the GPU of this machine, SM87"),
        (["--runtime", "vulkan"], "--runtime vulkan: engines are for tensorrt or tensorrt-rtx"),
    ],
    ids=["target", "runtime"],
)
def test_errors_are_one_line(
    jetson: Jetson,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    assert command(monkeypatch, jetson(JETPACK_7).path, *options) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and said in line
    assert printed.out == ""


def test_a_model_is_no_bundle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(monkeypatch, tmp_path / "none") == 2
    assert "does not exist; make it with `awq-edge export`" in capsys.readouterr().err
