"""A full disk and a kill leave nothing half-written; the next run works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import awq_edge
from awq_edge import artifacts
from awq_edge.errors import ResourceError

from .conftest import build_model, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that its checkpoint does not fit a megabyte."""
    return save_model(
        build_model("llama", hidden_size=256, intermediate_size=768, num_hidden_layers=6),
        tmp_path_factory.mktemp("model"),
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(reason=f"mount does not start here: {error}")
    if mounted.returncode:
        pytest.skip(reason=f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_no_disk_space_is_known_before_the_work(model: Path, small_disk: Path) -> None:
    with pytest.raises(ResourceError, match=r"the checkpoint needs .* MB in .*, 1 MB are free"):
        awq_edge.quantize(model, small_disk / "out", method="rtn", group_size=32)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line(
    model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program took the space after the check."""
    import awq_edge.quantizer as stage

    monkeypatch.setattr(stage, "require_disk", lambda *_: None)
    with pytest.raises(ResourceError, match="filled up while out was written; free some space"):
        awq_edge.quantize(model, small_disk / "out", method="rtn", group_size=32)
    assert list(small_disk.iterdir()) == []


def test_a_killed_run_leaves_nothing_under_the_name_and_the_next_cleans_up(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = (
        "import sys, time, awq_edge\n"
        "def observe(done, total, what):\n"
        "    print(done, flush=True)\n"
        "    time.sleep(60 if done else 0)\n"
        "awq_edge.quantize(sys.argv[1], sys.argv[2], method='rtn', group_size=32, observer=observe)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(model), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert [child.stdout.readline().strip() for _ in range(2)] == ["0", "1"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    (partial,) = tmp_path.glob(".out.partial-*")
    # The process's number must be gone for its folder to count as abandoned.
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    awq_edge.quantize(model, out, method="rtn", group_size=32)
    assert (out / "config.json").exists() and not partial.exists()


def test_overwriting_keeps_the_old_until_the_new_is_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    awq_edge.quantize(model, out, method="rtn", group_size=32)
    before = (out / "model.safetensors").read_bytes()

    def fail(directory: Path, final: Path, *, overwrite: bool) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(artifacts, "publish_directory", fail)
    with pytest.raises(OSError, match="Input/output error"):
        awq_edge.quantize(model, out, method="rtn", group_size=64, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
