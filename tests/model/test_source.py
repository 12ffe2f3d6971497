"""The chain from a model to its bundle, and weights that are not what the report says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle, hash_file
from awq_edge.errors import ArtifactError, ResourceError
from awq_edge.model.hub import resolve_model

RTN = awq_edge.load_recipe(method="rtn", group_size=64)
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo as a hub cache has it: files are links into the cache's blobs."""
    cache = tmp_path / "models--organization--name"
    snapshot, blobs = cache / "snapshots" / REVISION, cache / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in resolve_model("demo").iterdir():
        if file.is_file():
            blob = blobs / hash_file(file).sha256
            shutil.copyfile(file, blob)
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_the_model_stands_at_the_beginning_of_every_chain(model: Path, tmp_path: Path) -> None:
    weights = hash_file(model / "model.safetensors")
    checkpoint = awq_edge.quantize(model, tmp_path / "checkpoint", RTN)
    source = checkpoint.report.source
    assert source is not None and source.weights == {"model.safetensors": weights}
    assert (source.name, source.path, source.revision) == (str(model), str(model), REVISION)
    assert source.config_sha256 == hash_file(model / "config.json").sha256
    facts = source.facts()
    two_steps = awq_edge.export(checkpoint.path, tmp_path / "two").manifest.source
    one_step = awq_edge.export(model, tmp_path / "one", RTN).manifest.source
    unquantized = awq_edge.export(
        model, tmp_path / "plain", awq_edge.load_recipe(method="none")
    ).manifest.source
    for found in (two_steps, one_step, unquantized):
        assert found.items() >= facts.items()
        # Nothing of a folder that is gone.
        assert all(Path(value).exists() for value in found.values() if value.startswith("/"))
    assert two_steps["checkpoint"] == str(checkpoint.path)
    assert "checkpoint" not in one_step and unquantized == facts
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_changed_weights_are_named(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    awq_edge.quantize("demo", checkpoint, RTN)
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5000:-4900] = bytes(100)
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors was changed: .*--no-verify"):
        awq_edge.export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    Bundle.open(awq_edge.export(checkpoint, tmp_path / "bundle", verify=False).path)


def test_reports_of_earlier_versions_have_no_hashes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    awq_edge.quantize("demo", checkpoint, RTN)
    report = checkpoint / "quantization_report.json"
    content = json.loads(report.read_text())
    report.write_text(
        json.dumps({k: v for k, v in content.items() if k not in ("source", "weights")})
    )
    source = awq_edge.export(checkpoint, tmp_path / "bundle").manifest.source
    assert source["path"] == str(checkpoint) and "checkpoint" not in source


def test_the_disk_is_checked_for_all_that_an_export_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the checkpoint and its blocks, not for the bundle beside it."""
    seen: list[object] = []
    needed: list[int] = []

    def check(directory: Path, size: int, what: str, kept: str = "") -> None:
        needed.append(size)
        raise ResourceError(f"{what} needs {size}")

    monkeypatch.setattr("awq_edge.quantizer.stage.require_disk", check)
    for stage in (awq_edge.quantize, awq_edge.export):
        with pytest.raises(ResourceError, match="the checkpoint"):
            run = awq_edge.RunOptions(observer=lambda *told: seen.append(told))
            stage("demo", tmp_path / "out", RTN, run=run)  # type: ignore[operator]
    bundle = awq_edge.export(
        "demo", tmp_path / "plain", awq_edge.load_recipe(method="none", activation_dtype="float16")
    )
    size = sum(entry.size for entry in bundle.manifest.files.values())
    assert seen == [] and needed[1] >= needed[0] and needed[1] < 3 * size


def test_room_that_is_enough_before_the_work_is_enough_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []

    def check(directory: Path, size: int, what: str, kept: str = "") -> None:
        kept_files = [path for path in directory.rglob("*") if path.is_file()]
        needed.append(size + sum(path.stat().st_size for path in kept_files))

    for stage in ("quantizer.stage", "exporter.bundle"):
        monkeypatch.setattr(f"awq_edge.{stage}.require_disk", check)
    (tmp_path / "disk").mkdir()
    awq_edge.export("demo", tmp_path / "disk" / "out", RTN)
    before, behind = needed
    assert before >= behind


@pytest.mark.parametrize("context", [32_769, 1_000_000])
def test_a_context_beyond_the_position_tables_is_refused(tmp_path: Path, context: int) -> None:
    """A KV cache of that size would be made."""
    bundle = awq_edge.export("demo", tmp_path / "bundle", awq_edge.load_recipe(method="none")).path
    manifest = bundle / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "context": context}))
    with pytest.raises(ArtifactError, match=f"context {context:,} is more than the .* bytes"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\..\\b", ""])
def test_paths_of_a_manifest_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    bundle = awq_edge.export("demo", tmp_path / "bundle", awq_edge.load_recipe(method="none")).path
    manifest = bundle / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"][name] = content["files"]["model.onnx"]
    for key in ("files", "graph", "weights"):
        changed = content if key == "files" else {**content, key: name}
        manifest.write_text(json.dumps(changed))
        with pytest.raises(ArtifactError, match="is not a path inside the folder"):
            Bundle.open(bundle, verify=False)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "chat_template.jinja"])
def test_links_out_of_a_bundle_are_refused(tmp_path: Path, name: str) -> None:
    bundle = awq_edge.export("demo", tmp_path / "bundle", awq_edge.load_recipe(method="none")).path
    outside, file = tmp_path / "outside", bundle / name
    outside.write_bytes(file.read_bytes() if file.exists() else b"")
    file.unlink(missing_ok=True)
    file.symlink_to(outside)
    with pytest.raises(ArtifactError, match=f"{name} is a link out of the folder"):
        Bundle.open(bundle)
    file.unlink()
    (bundle / "kept").mkdir()
    outside.rename(bundle / "kept" / name)
    file.symlink_to(Path("kept") / name)  # inside: the user's own
    Bundle.open(bundle)
