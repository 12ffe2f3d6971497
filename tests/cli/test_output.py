"""Where JSON goes, and that nothing is half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from awq_edge.cli.output import JsonTarget
from awq_edge.errors import ConfigError


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    target = JsonTarget(str(path))
    assert list(tmp_path.iterdir()) == []  # the check before the work leaves nothing
    target.write('{"a": 1}')
    assert path.read_text() == '{"a": 1}\n'
    assert list(tmp_path.iterdir()) == [path]
    assert not target.owns_stdout


def test_an_old_file_is_kept_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    target = JsonTarget(str(path))
    assert path.read_text() == "old"
    with pytest.raises(UnicodeEncodeError):
        target.write("half \udcff")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_standard_output_is_the_jsons_alone(capsys: pytest.CaptureFixture[str]) -> None:
    target = JsonTarget("-")
    target.text_stream.write("text\n")
    target.console().print("table")
    target.write("{}")
    assert capsys.readouterr() == ("{}\n", "text\ntable\n")


def test_without_a_target_text_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    target = JsonTarget(None)
    target.text_stream.write("text\n")
    target.write("{}")
    assert capsys.readouterr() == ("text\n", "")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory; give the name of a file"):
        JsonTarget(str(tmp_path))


def test_a_missing_directory_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        JsonTarget(str(tmp_path / "none" / "report.json"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system without writing")
def test_an_unwritable_directory_is_refused_before_the_work() -> None:
    """/proc refuses new files even to root, whom permissions do not stop."""
    with pytest.raises(ConfigError, match=r"--json /proc/report\.json: cannot be written"):
        JsonTarget("/proc/report.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"--json /dev/full: cannot be written: No space left"):
        JsonTarget("/dev/full").write("{}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        JsonTarget(str(path)).write("{}")
        assert os.read(reader, 100) == b"{}\n"
    finally:
        os.close(reader)
    assert path.is_fifo()
