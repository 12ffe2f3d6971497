"""What --overwrite may replace, and outputs that would end their own inputs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

import awq_edge
from awq_edge.artifacts.outputs import check_output, foreign_entries, refuse_existing, require_apart
from awq_edge.errors import ConfigError
from awq_edge.model.hub import resolve_model

REPORT = "quantization_report.json"
RTN = awq_edge.load_recipe(method="rtn", group_size=64)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_model("demo"), tmp_path / "models" / "m"))


def forged(kind: str, *files: str, size: int = 0) -> str:
    """A manifest or report that names files of others."""
    entry = {"size": size, "sha256": hashlib.sha256(b"").hexdigest()}
    table = dict.fromkeys(files, entry)
    return json.dumps({"format": f"awq-edge-{kind}", "files": table, "weights": table})


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("stage", [awq_edge.quantize, awq_edge.export])
@pytest.mark.parametrize("out", ["models/m", "models", ".", "models/m/out", "link/m", "link"])
def test_an_output_that_is_holds_or_lies_in_its_input(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: object, out: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="which is read; choose another --out"):
            stage("models/m", out, RTN, run=awq_edge.RunOptions(overwrite=overwrite))  # type: ignore[operator]
    assert content(tmp_path) == before


@pytest.mark.parametrize("what", ["calibration", "eval_texts", "recipe"])
def test_texts_and_recipes_are_inputs_too(model: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    file = out / ("own.toml" if what == "recipe" else "text.txt")
    file.write_text('extends = "cpu"\n' if what == "recipe" else "some text " * 100)
    given = [file] if what == "eval_texts" else file
    with pytest.raises(ConfigError, match=r"--out .*out holds --"):
        arguments = {"recipe": RTN, "run": awq_edge.RunOptions(overwrite=True), what: given}
        awq_edge.quantize(model, out, **arguments)
    assert file.exists()


def test_a_checkpoint_and_a_bundle_are_replaced_by_their_like_alone(
    model: Path, tmp_path: Path
) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    awq_edge.quantize(model, checkpoint, RTN)
    awq_edge.export(checkpoint, bundle)
    assert foreign_entries(checkpoint) == foreign_entries(bundle) == []
    with pytest.raises(ConfigError, match="exists; choose another --out or give --overwrite"):
        awq_edge.export(checkpoint, bundle)
    awq_edge.export(checkpoint, bundle, run=awq_edge.RunOptions(overwrite=True))
    for folder in (checkpoint, bundle):
        notes = folder / "notes" / "mine.txt"
        notes.parent.mkdir()
        notes.write_text("mine")
        with pytest.raises(ConfigError, match=r"exists and holds notes, which awq-edge"):
            awq_edge.quantize(model, folder, RTN, run=awq_edge.RunOptions(overwrite=True))
        assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "x"},
        {"manifest.json": '{"name": "a web app"}'},
        {"manifest.json": '{"format": "awq-edge-bundle", "files": {}}', "b/c": "x"},
        {"manifest.json": '{"format": "awq-edge-bundle", "files": {}}', "engines/mine": "x"},
        {"quantization_report.json": "{}", "config.json": "{}"},
        {"config.json": "{}", "model.safetensors": ""},
        {"build.log": "of something else"},
        {"manifest.json": "[" * 100_000},
        {"model.engine": "x", "manifest.json": "{}"},
        {"manifest.json": forged("bundle", "thesis.tex"), "thesis.tex": ""},
        {"manifest.json": forged("bundle", "b/c"), "b/c": ""},
        {"manifest.json": forged("bundle", "model.safetensors"), "model.safetensors": ""},
        {"manifest.json": forged("bundle", "model.onnx", size=9), "model.onnx": "own"},
        {"manifest.json": forged("engine", "thesis.tex"), "thesis.tex": ""},
        {"engines/mine/manifest.json": forged("engine", "t"), "engines/mine/t": ""}
        | {"manifest.json": forged("bundle")},
        {REPORT: forged("quantization-report"), "model.safetensors": "own"},
        {REPORT: forged("quantization-report", "thesis.tex"), "thesis.tex": ""},
        {REPORT: forged("quantization-report", "model.safetensors"), "model.safetensors": "own"},
        {REPORT: '{"format": "awq-edge-quantization-report", "weights": []}', "model-1.txt": ""},
    ],
)
def test_folders_of_others(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="which awq-edge did not make"):
        refuse_existing(tmp_path, overwrite=True)


def test_a_folder_of_others_is_not_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder, or /: what is at its top is enough for the line."""
    below = tmp_path / "documents" / "more"
    below.mkdir(parents=True)
    listed: list[str] = []
    scandir = os.scandir

    def noted(path: object) -> object:
        listed.append(str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", noted)
    for manifest in (None, forged("bundle", "documents/more")):
        if manifest is not None:
            (tmp_path / "manifest.json").write_text(manifest)
        with pytest.raises(ConfigError, match="holds documents, which awq-edge did not make"):
            refuse_existing(tmp_path, overwrite=True)
    assert set(listed) == {str(tmp_path)}


def test_engines_in_their_bundle_are_replaced_with_it(tmp_path: Path) -> None:
    engine = tmp_path / "engines" / "tensorrt-10-SM87"
    engine.mkdir(parents=True)
    (tmp_path / "manifest.json").write_text('{"format": "awq-edge-bundle", "files": {}}')
    (engine / "model.engine").write_text("")
    for manifest in ('{"format": "awq-edge-engine", "files": {"model.engine": {}}}', "damaged"):
        (engine / "manifest.json").write_text(manifest)
        refuse_existing(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", "is a file"),
        ("file/out", "is a file"),
        ("loop", "leads back to itself"),
        ("n" * 300, "too long"),
        ("~nobody-of-this-name/out", "no home folder of that user"),
        ("a\0b", "null bytes"),
    ],
)
def test_what_cannot_work_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, words: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    seen: list[object] = []
    for stage in (awq_edge.quantize, awq_edge.export):
        with pytest.raises(ConfigError, match=words):
            run = awq_edge.RunOptions(observer=lambda *told: seen.append(told))
            stage("demo", out, RTN, run=run)  # type: ignore[operator]
    assert seen == [] and sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]


def test_a_parent_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser may write anywhere: the system's refusal is put in."""

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written: Permission denied"):
        check_output(tmp_path / "out", overwrite=False, inputs={})


def test_links_into_an_output_count(tmp_path: Path) -> None:
    """Weights that are links into the folder that would be replaced."""
    store, model = tmp_path / "store", tmp_path / "model"
    store.mkdir()
    model.mkdir()
    (store / "blob").write_text("weights")
    (model / "model.safetensors").symlink_to(store / "blob")
    with pytest.raises(ConfigError, match="holds MODEL"):
        require_apart(store, [("MODEL", model)])
    require_apart(tmp_path / "out", [("MODEL", model), ("MODEL", "organization/model")])


def test_reports_are_not_written_over_others(tmp_path: Path) -> None:
    from awq_edge.cli.output import FileTarget, JsonTarget

    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"format": "mine"}))
    for flag in ("--json", "--csv", "--html"):
        with pytest.raises(ConfigError, match="was not written by awq-edge"):
            FileTarget(flag, str(mine))
    ours = tmp_path / "ours.json"
    ours.write_text(json.dumps({"format": "awq-edge-fit"}))
    JsonTarget(str(ours)).write("{}")
    with pytest.raises(ConfigError, match=r"is input .*, which is read"):
        JsonTarget(str(ours), [ours])
    with pytest.raises(ConfigError, match=r"lies in input .*, which is read"):
        JsonTarget(str(tmp_path / "new.json"), [tmp_path])
