"""Processes started by this one: they, and their own children, end when it ends.

Each command runs in a process group of its own whose leader is a small shell that waits for the end
of a pipe. The other end is open in this process alone: when it ends, even by SIGKILL, the system
closes it, and the shell ends the group. PR_SET_PDEATHSIG would reach the command, not the compilers
that it starts.

    this process ──pipe──▶ sh, leader of the group
         └────── command, in that group ── what it starts, in that group
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from awq_edge.process.staging import sweep_abandoned, temporary

# HUP, INT and TERM are for the command; the leader has to outlast it. A line on the pipe never
# comes: `read` ends with the pipe.
_LEADER = (
    'trap "" HUP INT TERM; read -r _; kill -TERM 0; '
    "for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done; kill -KILL 0"
)
# Python 3.11 sets the group without running Python between fork and exec.
_HAS_GROUPS = "process_group" in inspect.signature(subprocess.Popen).parameters


@contextlib.contextmanager
def child(
    command: Sequence[str | Path],
    *,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    binary: bool = False,
) -> Iterator[subprocess.Popen[Any]]:
    """Start a command whose pipes carry UTF-8 text, or bytes; at the end of the block the rest of
    its group is killed.

    Raises OSError where the command cannot be started.
    """
    reading, writing = os.pipe()
    leader: subprocess.Popen[bytes] | None = None
    process: subprocess.Popen[Any] | None = None
    try:
        leader = subprocess.Popen(
            ["/bin/sh", "-c", _LEADER],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **_in_group(0),
        )
        os.close(reading)
        reading = -1
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            encoding=None if binary else "utf-8",
            errors=None if binary else "replace",
            **_in_group(leader.pid),
        )
        yield process
    finally:
        if reading >= 0:
            os.close(reading)
        if leader is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGKILL)
            leader.wait()
        os.close(writing)
        if process is not None:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


def run(
    command: Sequence[str | Path],
    *,
    timeout: float,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is in `stdout` and `stderr` of the result.

    timeout: seconds.
    Raises subprocess.TimeoutExpired after ending all of its group, OSError where it cannot be
    started.
    """
    pipe = subprocess.PIPE
    stdin = subprocess.DEVNULL if input is None else pipe
    with child(command, stdin=stdin, stdout=pipe, stderr=pipe, env=env) as process:
        stdout, stderr = process.communicate(input, timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def output_of(command: Sequence[str | Path]) -> str:
    """Standard output of a command that may take long; its errors go to ours.

    Raises subprocess.CalledProcessError where it fails.
    """
    with child(command, stdout=subprocess.PIPE) as process:
        stdout, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        return str(stdout)


@contextlib.contextmanager
def scratch_directory(purpose: str, base: Path | None = None) -> Iterator[Path]:
    """Yield a directory for temporary files that is gone after the block. First clear the
    directories that killed processes of the same purpose and user have left.

    base: the parent; None for the system's folder for temporary files.
    """
    folder = Path(base or tempfile.gettempdir())
    name = f"awq-edge-{purpose}-{os.getuid()}"
    sweep_abandoned(folder, name)
    with temporary(folder, name) as path:
        path.chmod(0o700)
        yield path


def _in_group(leader: int) -> dict[str, Any]:
    """Arguments of Popen for a process group: a new one (0), or that of `leader`."""
    if _HAS_GROUPS:
        return {"process_group": leader}
    return {"preexec_fn": lambda: os.setpgid(0, leader)}
