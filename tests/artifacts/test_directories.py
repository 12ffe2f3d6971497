"""Directories are written whole or not at all, and changes are noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from awq_edge.artifacts import directories as artifacts
from awq_edge.artifacts import outputs
from awq_edge.errors import ArtifactError, ConfigError, ResourceError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "bundle"
    with artifacts.atomic_directory(final) as work:
        (work / "a.txt").write_text("a")
        assert not final.exists()
    assert (final / "a.txt").read_text() == "a"
    assert os.listdir(final.parent) == ["bundle"]


def test_nothing_stays_behind_on_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="boom"),
        artifacts.atomic_directory(tmp_path / "bundle") as work,
    ):
        (work / "a.txt").write_text("a")
        raise RuntimeError("boom")
    assert os.listdir(tmp_path) == []


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    final = tmp_path / "bundle"
    final.mkdir()
    (final / "old.txt").write_text("old")
    with pytest.raises(ConfigError, match=r"old\.txt"), artifacts.atomic_directory(final):
        pass
    with pytest.raises(ConfigError, match=r"holds old\.txt, which awq-edge did not make"):
        outputs.refuse_existing(final, overwrite=True)


def test_a_killed_writer_leaves_no_final_name_and_is_cleaned_up(tmp_path: Path) -> None:
    final = tmp_path / "bundle"
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom awq_edge.artifacts.directories import *\n"
        "with atomic_directory(Path(sys.argv[1])) as work:\n"
        "    (work / 'a').write_text('a'); print('ready', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(final)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not final.exists()
    assert len(os.listdir(tmp_path)) == 1
    with artifacts.atomic_directory(final) as work:
        (work / "b").write_text("b")
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    artifacts.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), artifacts.atomic_file(path) as work:
        work.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["report.json"]


def test_verify_names_the_file_that_differs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    weights = tmp_path / "sub" / "model.weights"
    weights.write_bytes(b"0123456789")
    files = artifacts.hash_files(tmp_path)
    assert list(files) == ["sub/model.weights"]
    artifacts.verify_files(tmp_path, files)
    artifacts.verify_files(tmp_path, files)  # by its stamp

    weights.write_bytes(b"0123456780")
    with pytest.raises(ArtifactError, match=r"model\.weights was changed"):
        artifacts.verify_files(tmp_path, files)
    weights.write_bytes(b"01234")
    with pytest.raises(ArtifactError, match=r"has 5 bytes, its manifest says 10"):
        artifacts.verify_files(tmp_path, files)
    weights.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        artifacts.verify_files(tmp_path, files)


def test_opening_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        artifacts.Bundle.open(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        artifacts.Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(ArtifactError, match=r"not a valid bundle manifest \(format"):
        artifacts.Bundle.open(tmp_path)


def test_disk_space_is_compared_with_what_is_free(tmp_path: Path) -> None:
    outputs.require_disk(tmp_path / "not" / "yet", 1, "export")
    with pytest.raises(ResourceError, match=r"export needs 1,000,000,000.00 GB"):
        outputs.require_disk(tmp_path, 10**18, "export")
