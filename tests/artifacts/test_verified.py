"""Files that were hashed once: what is remembered, what is forgotten."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from awq_edge.artifacts.verified import is_verified, remember

DAY = 24 * 3600
SHA = "0" * 64


@pytest.fixture
def stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "verified"


def test_a_file_is_known_as_it_is(stamps: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights \udcff"
    file.write_bytes(b"one")
    assert not is_verified(file, file.stat(), SHA)
    remember(file, file.stat(), SHA)
    assert is_verified(file, file.stat(), SHA)
    assert not is_verified(file, file.stat(), "1" * 64)
    file.write_bytes(b"two")
    assert not is_verified(file, file.stat(), SHA)


def test_what_nobody_uses_is_forgotten(stamps: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    for one in (file, other):
        one.touch()
        remember(one, one.stat(), SHA)
    for stamp in stamps.iterdir():
        os.utime(stamp, (time.time() - 100 * DAY,) * 2)
    assert is_verified(file, file.stat(), SHA)  # used, which makes it young
    remember(tmp_path, tmp_path.stat(), SHA)
    assert is_verified(file, file.stat(), SHA)
    assert not is_verified(other, other.stat(), SHA)
    assert len(list(stamps.iterdir())) == 2


def test_the_cache_is_bounded(stamps: Path, tmp_path: Path) -> None:
    stamps.mkdir(parents=True)
    for number in range(1500):
        (stamps / str(number)).touch()
        os.utime(stamps / str(number), (time.time() - 10 - number,) * 2)
    remember(tmp_path, tmp_path.stat(), SHA)
    assert len(list(stamps.iterdir())) == 1000
    assert is_verified(tmp_path, tmp_path.stat(), SHA)
    assert (stamps / "0").exists() and not (stamps / "1499").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder without writing")
def test_a_cache_that_cannot_be_written_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWQ_EDGE_CACHE", "/proc/none")
    remember(tmp_path, tmp_path.stat(), SHA)
    assert not is_verified(tmp_path, tmp_path.stat(), SHA)
