"""Temporary names: held by locks, cleared when nobody holds them, made good where need be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awq_edge.artifacts.directories import atomic_directory, atomic_file
from awq_edge.errors import ConfigError
from awq_edge.process import staging

DAY = 24 * 3600


def bundle(folder: Path, text: str = "new") -> None:
    """What counts as a bundle, with one file."""
    manifest = {"format": "awq-edge-bundle", "files": {"model.txt": {"size": len(text)}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model.txt").write_text(text)


def make(out: Path, text: str = "new", *, overwrite: bool = False) -> None:
    with atomic_directory(out, overwrite=overwrite) as work:
        bundle(work, text)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    for each in (*path.rglob("*"), path):
        os.utime(each, (then, then))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_same_output_clears_what_nobody_holds(tmp_path: Path) -> None:
    left = (".out.partial-00000000", ".out.old-11111111", ".out.partial-1-22222222")
    for name in (*left, "..out.checkpoint.partial-33333333"):
        (tmp_path / name).mkdir()
    (tmp_path / "out").mkdir()
    bundle(tmp_path / "out")
    make(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out"]
    (tmp_path / ".report.json.partial-00000000").write_text("half")
    with atomic_file(tmp_path / "report.json") as work:
        work.write_text("whole")
    assert names(tmp_path) == ["out", "report.json"]


def test_the_number_of_a_living_process_does_not_keep_a_folder(tmp_path: Path) -> None:
    (tmp_path / f".out.partial-{os.getpid()}-00000000").mkdir()
    make(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_other_outputs_are_cleared_after_a_day_and_kept_work_after_a_week(tmp_path: Path) -> None:
    for name in (".a.partial-00000000", ".b.old-00000000", ".c.resume", ".d.checkpoint"):
        (tmp_path / name).mkdir()
    (tmp_path / ".c.resume" / "key").write_text("k")
    (tmp_path / ".d.checkpoint" / "quantization_report.json").write_text("{}")
    (tmp_path / ".e.resume").mkdir()  # of somebody else
    everything = names(tmp_path)
    make(tmp_path / "out")
    assert names(tmp_path) == sorted([*everything, "out"])
    for path in tmp_path.iterdir():
        age(path, 2 * DAY)
    make(tmp_path / "out2")
    # What was to be replaced, and was not, is there again under its name.
    assert names(tmp_path) == [".c.resume", ".d.checkpoint", ".e.resume", "b", "out", "out2"]
    for path in tmp_path.iterdir():
        age(path, 8 * DAY)
    make(tmp_path / "out3")
    assert names(tmp_path) == [".e.resume", "b", "out", "out2", "out3"]


def test_what_a_living_process_holds_stays(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from awq_edge.artifacts.directories import atomic_directory\n"
        "with atomic_directory(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        (partial,) = tmp_path.iterdir()
        age(partial, 9 * DAY)
        with pytest.raises(ConfigError, match="another run is making"):
            make(tmp_path / "out")
        make(tmp_path / "other")
        assert partial.exists()
        other.kill()
    make(tmp_path / "out")
    assert names(tmp_path) == ["other", "out"]


def test_an_old_output_that_lost_its_name_gets_it_back(tmp_path: Path) -> None:
    """Killed between two renames, on a system that cannot exchange names."""
    old = tmp_path / ".out.old-00000000"
    old.mkdir()
    bundle(old, "old")
    staging.sweep(tmp_path / "out")
    assert (tmp_path / "out" / "model.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_without_an_exchange_of_names_nothing_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    make(tmp_path / "out", "old")
    make(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "model.txt").read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("link", [False, True])
def test_an_empty_folder_is_taken_and_stays_the_same_one(tmp_path: Path, link: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o750)
    inode = folder.stat().st_ino
    out = tmp_path / "link" if link else folder
    if link:
        out.symlink_to(folder)
    make(out)
    assert folder.stat().st_ino == inode and folder.stat().st_mode & 0o777 == 0o750
    assert names(folder) == ["manifest.json", "model.txt"]
    assert out.is_symlink() == link


def test_the_working_directory_is_replaced_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    make(folder, "old")
    monkeypatch.chdir(folder)
    inode = folder.stat().st_ino
    make(Path(), "new", overwrite=True)
    assert Path("model.txt").read_text() == "new" and folder.stat().st_ino == inode
    assert names(folder) == ["manifest.json", "model.txt"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("moves", range(5))
def test_a_replacement_in_place_that_was_killed_is_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Two names go, two come: killed before each move, and after the last."""
    folder = tmp_path / "out"
    make(folder, "old")
    monkeypatch.chdir(folder)
    work = folder / ".contents.partial-00000000"
    work.mkdir()
    bundle(work, "new")
    staging._write_journal(work, folder)
    left = moves

    def rename(self: Path, target: Path) -> Path:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        os.rename(self, target)
        return target

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        if moves < 4:
            with pytest.raises(KeyboardInterrupt):
                staging._move_contents(work)
        else:
            staging._move_contents(work)
    staging.sweep(folder)
    assert (folder / "model.txt").read_text() == "new"
    assert names(folder) == ["manifest.json", "model.txt"]


def test_a_folder_with_kept_work_alone_counts_as_empty(tmp_path: Path) -> None:
    """Whose export, or its quantization, was interrupted."""
    out = tmp_path / "out"
    out.mkdir()
    between = staging.kept_path(out, "checkpoint")
    kept = (staging.kept_path(between, "resume"), staging.kept_path(out, "resume"), between)
    for folder in kept:
        folder.mkdir()
    assert len(names(out)) == 3 and staging.visible_entries(out) == []
    make(out)
    assert (out / "manifest.json").is_file() and names(tmp_path) == ["out"]


def test_an_interruption_between_the_moves_finishes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    moved: list[Path] = []

    def rename(self: Path, target: Path) -> Path:
        if target.parent == folder:
            moved.append(target)
            if len(moved) == 2:
                raise KeyboardInterrupt
        os.rename(self, target)
        return target

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        make(folder)
    assert names(folder) == ["manifest.json", "model.txt"]


def test_a_file_keeps_its_permissions_and_its_link(tmp_path: Path) -> None:
    file, link = tmp_path / "report.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    with atomic_file(link) as work:
        work.write_text("new")
    assert file.read_text() == "new" and file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink() and names(tmp_path) == ["link.json", "report.json"]


def test_names_that_nearly_fill_a_file_system(tmp_path: Path) -> None:
    make(tmp_path / ("n" * 250))
    make(tmp_path / ("n" * 250), overwrite=True)
    assert names(tmp_path) == ["n" * 250]
