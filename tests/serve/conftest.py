"""A server in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_START_SECONDS = 60
_MAIN = "from awq_edge.cli import main; main()"
# The same with 20 ms more for each token: what runs is still running when it is looked at.
_SLOW_MAIN = (
    """
import time
from awq_edge.runtime.backends.onnxruntime import OnnxRuntimeSession as Session

decode = Session.decode
def slow(self, token_id):
    time.sleep(0.02)
    return decode(self, token_id)
Session.decode = slow
"""
    + _MAIN
)


@dataclass
class RunningServer:
    """process, its address (http://127.0.0.1:PORT) and what it has said so far."""

    process: subprocess.Popen[str]
    address: str
    said: list[str] = field(default_factory=list)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(_START_SECONDS)


# The same with little patience for clients.
_HASTY_MAIN = (
    """
from awq_edge.serve import protocol
from awq_edge.serve.limits import Limits

protocol.HEAD_SECONDS = 0.5
Limits.__init__.__defaults__ = tuple(
    0.5 if name == "body_seconds" else field.default
    for name, field in Limits.__dataclass_fields__.items()
)
"""
    + _MAIN
)
_MAINS = {"": _MAIN, "slow": _SLOW_MAIN, "hasty": _HASTY_MAIN}


StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="module")
def start_server() -> Iterator[StartServer]:
    """start_server(bundle, *arguments, kind="", **environment): ended with the module's tests.

    kind: "slow" is a model that takes 20 ms for each token, "hasty" a server that waits 0.5 s for a
    request's head, and for its body."""
    pytest.importorskip("fastapi", reason="needs the [serve] extra")
    started: list[RunningServer] = []

    def start(bundle: Path, *arguments: str, kind: str = "", **environment: str) -> RunningServer:
        command = [
            sys.executable,
            "-c",
            _MAINS[kind],
            "serve",
            str(bundle),
            "--port",
            "0",
        ]
        process = subprocess.Popen(
            [*command, "--threads", "1", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if " at http://" in line:
                break
        else:
            pytest.fail(f"the server did not start: {''.join(said)}")
        server = RunningServer(process, line.split(" at ")[1].split("/v1")[0], said)
        threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
