"""Children, and their children, end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awq_edge.process import children

END_SECONDS = 20  # of a group that gets a second to end by itself
# A command whose child ignores SIGTERM and has a child of its own.
TREE = "trap '' TERM; sh -c 'echo $$ >> pids; sleep 300 & echo $! >> pids; wait' & "
PARENT = f"""
import sys
from awq_edge.process import children
with children.child(["sh", "-c", {TREE + "echo $$ >> pids; wait"!r}]) as process:
    process.wait()
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_whole_tree_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    pids = tmp_path / "pids"
    deadline = time.monotonic() + END_SECONDS
    while not pids.exists() or len(pids.read_text().split()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found = [int(pid) for pid in pids.read_text().split()]
    assert all(alive(pid) for pid in found)
    parent.send_signal(number)
    parent.wait()
    deadline = time.monotonic() + END_SECONDS
    while any(alive(pid) for pid in found):
        assert time.monotonic() < deadline, f"{found} go on"
        time.sleep(0.02)


def test_what_a_command_says_and_its_code() -> None:
    done = children.run(["sh", "-c", "cat; echo err >&2; exit 3"], timeout=10, input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\n", "err\n")
    killed = children.run(["sh", "-c", "kill -9 $$"], timeout=10)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError):
        children.run(["no-such-command-here"], timeout=10)


def test_a_timeout_ends_what_holds_the_pipe_too() -> None:
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        children.run(["sh", "-c", "sleep 300 & sleep 300"], timeout=0.3)
    assert time.monotonic() - start < END_SECONDS


def test_a_folder_for_temporary_files_of_a_killed_process_is_cleared(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from awq_edge.process import children\n"
        "with children.scratch_directory('test', Path(sys.argv[1])) as folder:\n"
        "    (folder / 'large').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL and len(os.listdir(tmp_path)) == 1
    with children.scratch_directory("test", tmp_path) as folder:
        assert os.listdir(tmp_path) == [folder.name]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path) == []


def test_every_process_of_the_package_is_started_here() -> None:
    root = Path(children.__file__).parent
    calls = (
        "subprocess.run(",
        "subprocess.Popen(",
        "subprocess.call(",
        "subprocess.check_output(",
        "os.fork(",
    )
    for path in sorted(root.rglob("*.py")):
        if path != Path(children.__file__):
            text = path.read_text(encoding="utf-8")
            assert not any(call in text for call in calls), path
