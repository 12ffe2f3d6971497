"""Reports on a disk that is full at any write: one line, and no report is half there or lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import awq_edge
from awq_edge.model.hub import resolve_model
from awq_edge.process.staging import is_temporary
from tests.full_disk import FullDisk

from .conftest import Command

MOMENTS = 1000  # more writes than any of the commands makes
STEP = {"quantize": 9}  # writes from a moment to the next; of others every one
FEW = ("--prompt", "8", "--generated", "2", "--repeats", "1", "--warmup", "0", "--threads", "1")
COMMANDS = {
    "fit": ("fit", "demo", "--json", "OUT/x.json"),
    "doctor": ("doctor", "--json", "OUT/x.json"),
    "recipe": ("recipes", "show", "cpu", "--json", "OUT/x.json"),
    "inspect": ("inspect", "BUNDLE", "--json", "OUT/x.json"),
    "inspect page": ("inspect", "CHECKPOINT", "--html", "OUT/x.html", "--json", "OUT/x.json"),
    "perplexity": ("eval", "perplexity", "BUNDLE", "--text", "TEXT", "--json", "OUT/x.json"),
    "divergence": ("eval", "divergence", "BUNDLE", "--reference", "BUNDLE", "--text", "TEXT",
                   "--json", "OUT/x.json"),
    "run": ("run", "BUNDLE", "--max-new-tokens", "2", "--json", "OUT/x.json"),
    "bench": ("bench", "BUNDLE", *FEW, "--json", "OUT/x.json", "--csv", "OUT/x.csv"),
    "quantize": ("quantize", "demo", "--method", "rtn", "--out", "OUT/out", "--json", "OUT/x.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the names in `COMMANDS` stand for, but for OUT."""
    folder = tmp_path_factory.mktemp("places")
    checkpoint, bundle, text = folder / "checkpoint", folder / "bundle", folder / "text.txt"
    awq_edge.quantize("demo", checkpoint, awq_edge.load_recipe(method="rtn"))
    awq_edge.export(checkpoint, bundle)
    text.write_text("Once upon a time there was a boat. " * 20)
    return {"CHECKPOINT": str(checkpoint), "BUNDLE": str(bundle), "TEXT": str(text)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_report_on_a_full_disk(
    awq_edge_command: Command,
    monkeypatch: pytest.MonkeyPatch,
    places: dict[str, str],
    tmp_path: Path,
    name: str,
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    arguments = [_filled(each, {**places, "OUT": str(folder)}) for each in COMMANDS[name]]
    wanted = {Path(each).name for each in arguments if each.startswith(str(folder))}
    failures = 0
    with monkeypatch.context() as patched:
        disk = FullDisk(folder, patched)
        for moment in range(0, MOMENTS, STEP.get(name, 1)):
            disk.left, disk.failed = moment, False
            outcome = awq_edge_command(*arguments)
            if outcome.code == 0:
                break
            assert outcome.code == 2 and disk.failed, outcome
            errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
            assert (len(errors) == 1 and "No space left" in errors[0]) or "free some" in errors[0]
            left = {each for each in os.listdir(folder) if not is_temporary(each)}
            assert left <= wanted
            for file in folder.iterdir():  # each is whole or not there
                assert file.is_dir() or file.read_bytes().endswith(b"\n")
            shutil.rmtree(folder / "out", ignore_errors=True)
            failures += 1
    assert failures > 0 and outcome.code == 0 and set(os.listdir(folder)) == wanted


def test_a_report_that_cannot_be_replaced_stays(
    awq_edge_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = tmp_path / "fit.json"
    assert awq_edge_command("fit", resolve_model("demo"), "--json", report).code == 0
    before = report.read_bytes()
    with monkeypatch.context() as patched:
        disk = FullDisk(tmp_path, patched)
        for moment in range(2):
            disk.left = moment
            outcome = awq_edge_command("fit", "demo", "--context", "64", "--json", report)
            assert outcome.code == 2
            assert report.read_bytes() == before and os.listdir(tmp_path) == [report.name]


def _filled(argument: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        argument = argument.replace(name, place)
    return argument
