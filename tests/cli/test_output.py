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


RUN = '{"format": "awq-edge-run-report", "tokens": 1}'
LATER = '{"format": "awq-edge-run-report", "tokens": 22}'
BENCH = '{"format": "awq-edge-bench-report", "cells": []}'


def test_an_old_report_is_kept_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(RUN)
    target = JsonTarget(str(path))
    assert path.read_text() == RUN
    with pytest.raises(UnicodeEncodeError):
        target.write(RUN.replace("1", '"half \udcff"'))
    assert path.read_text() == RUN
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_replaced_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    JsonTarget(str(path)).write(RUN)
    JsonTarget(str(path)).write(RUN)  # the same: nothing is lost
    assert capsys.readouterr() == ("", "")
    JsonTarget(str(path)).write(LATER)
    assert path.read_text() == LATER + "\n"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{path}: the report of ") and err.endswith(" bytes, is replaced\n")


@pytest.mark.parametrize(("new", "interrupted"), [(LATER, True), (BENCH, False)])
def test_a_report_is_not_lost_to_half_a_one_or_to_another_kind(
    new: str, interrupted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(RUN)
    for name in ("report.2.json", "report.3.json"):
        JsonTarget(str(path)).write(new, interrupted=interrupted)
        assert (tmp_path / name).read_text() == new + "\n"
        assert f"written to {tmp_path / name}" in capsys.readouterr().err
    assert path.read_text() == RUN


@pytest.mark.parametrize(
    "text",
    ["notes", "{}", "[1]", '{"format": "awq-edge-conversation"}', '{"format": "awq-edge-bundle"}'],
)
def test_what_is_no_report_is_not_replaced(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="exists and was not written by awq-edge"):
        JsonTarget(str(path))
    assert path.read_text() == text


def test_reports_without_a_format_are_replaced_by_their_own_kind(tmp_path: Path) -> None:
    path = tmp_path / "build.json"
    for engines in ("[]", "[1]"):
        JsonTarget(str(path)).write(f'{{"bundle": "b", "engines": {engines}}}')
        assert engines in path.read_text()


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
