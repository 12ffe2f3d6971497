"""An engine is found, or refused with the field that differs; each in one line with the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from awq_edge.artifacts.directories import MANIFEST, Bundle
from awq_edge.errors import ArtifactError
from awq_edge.tensorrt.engines import Engine, PluginContract, find_engine
from awq_edge.tensorrt.engines.manifest import ENGINE_FILE
from awq_edge.tensorrt.engines.places import engine_folders, writable_folder
from tests.tensorrt.engine_bundles import edit_manifest, make_engine

RUNTIME, VERSION, SM = "tensorrt-rtx", "1.7.1.116", "SM89"


def made(bundle: Bundle, **changes: Any) -> Path:
    return make_engine(bundle, bundle.path / "engines", RUNTIME, VERSION, SM, changes)


def refusal(bundle: Bundle) -> str:
    with pytest.raises(ArtifactError) as error:
        find_engine(bundle, RUNTIME, VERSION, SM)
    message = str(error.value)
    assert "\n" not in message
    assert f"awq-edge build {bundle.path}" in message or "`awq-edge build`" in message
    return message


@pytest.mark.parametrize("place", [0, 1])
def test_engine_of_bundle_and_of_cache_folder_is_found(bundle: Bundle, place: int) -> None:
    folder = make_engine(bundle, engine_folders(bundle)[place], RUNTIME, VERSION, SM)
    engine = find_engine(bundle, RUNTIME, VERSION, SM)
    assert engine.path == folder
    assert engine.file.read_bytes()
    assert engine.manifest.sm == SM


def test_without_engine_the_command_is_named(bundle: Bundle) -> None:
    assert refusal(bundle) == (
        f"{bundle.path} has no engine {RUNTIME}-{VERSION}-{SM}; build it with "
        f"`awq-edge build {bundle.path} --runtime {RUNTIME} --target {SM}`"
    )


@pytest.mark.parametrize(
    ("version", "sm"), [(VERSION, "SM86"), ("1.6.0.30", SM)], ids=["another SM", "other TensorRT"]
)
def test_engines_that_are_there_are_named(bundle: Bundle, version: str, sm: str) -> None:
    make_engine(bundle, bundle.path / "engines", RUNTIME, version, sm)
    assert f"(it has {RUNTIME}-{version}-{sm})" in refusal(bundle)


OTHER_PLUGIN = PluginContract(
    plugin_version="2", layout_version=1, abi_version=1, library_sha256="0" * 64
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sm": "SM86"}, "sm is SM86, needed is SM89"),
        ({"runtime_version": "1.6.0.30"}, "runtime_version is 1.6.0.30, needed is 1.7.1.116"),
        ({"runtime": "tensorrt"}, "runtime is tensorrt, needed is tensorrt-rtx"),
        ({"plugin": OTHER_PLUGIN}, "plugin.plugin_version is 2, needed is 1"),
        ({"bundle_sha256": "ab" * 32}, "bundle_sha256 is abababababab..., that of"),
        ({"profiles": ()}, "has other profiles than this version runs"),
        ({"files": {}}, f"has no hash of {ENGINE_FILE}"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_engine_that_does_not_match_names_the_field(
    bundle: Bundle, changes: dict[str, Any], said: str
) -> None:
    made(bundle, **changes)
    assert said in refusal(bundle)


def test_truncated_engine_is_refused(bundle: Bundle) -> None:
    file = made(bundle) / ENGINE_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert f"{file} has {len(whole) - 1} bytes, its manifest says {len(whole)}" in refusal(bundle)


def test_damaged_engine_is_refused(bundle: Bundle) -> None:
    file = made(bundle) / ENGINE_FILE
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert f"{file} was changed: sha256" in refusal(bundle)


def test_missing_engine_file_is_refused(bundle: Bundle) -> None:
    file = made(bundle) / ENGINE_FILE
    file.unlink()
    assert f"{file} is missing" in refusal(bundle)


def test_engine_of_an_earlier_export_is_refused(bundle: Bundle) -> None:
    made(bundle)
    changed = edit_manifest(bundle, model_name="exported again")
    assert "was built from another export" in refusal(changed)


def test_changed_bundle_is_refused_before_its_engine(bundle: Bundle) -> None:
    made(bundle)
    weights = bundle.path / bundle.manifest.weights
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data was changed"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("text", ["", "{", '{"format": "awq-edge-bundle"}', None])
def test_unreadable_engine_manifest_is_refused(bundle: Bundle, text: str | None) -> None:
    manifest = made(bundle) / MANIFEST
    if text is None:
        manifest.unlink()
    else:
        manifest.write_text(text)
    assert "manifest" in refusal(bundle)


def test_engine_manifest_round_trips(bundle: Bundle) -> None:
    folder = made(bundle)
    manifest = Engine.open(folder).manifest
    again = json.loads((folder / MANIFEST).read_text())
    assert manifest.model_dump(mode="json") == again


def test_read_only_bundle_has_its_engines_in_the_cache_folder(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writable_folder(bundle) == bundle.path / "engines"
    touch = Path.touch

    def refuse(path: Path, *arguments: Any, **named: Any) -> None:
        # As a read-only file system does; root is not stopped by permissions.
        if path.is_relative_to(bundle.path):
            raise OSError(30, "Read-only file system")
        touch(path, *arguments, **named)

    monkeypatch.setattr(Path, "touch", refuse)
    folder = writable_folder(bundle)
    assert folder == engine_folders(bundle)[1]
    make_engine(bundle, folder, RUNTIME, VERSION, SM)
    assert find_engine(bundle, RUNTIME, VERSION, SM).path.parent == folder
