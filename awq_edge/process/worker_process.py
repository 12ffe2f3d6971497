"""Processes for programs of strangers: each request has limits, and a process beyond them is ended.

A thread cannot be stopped, a process can. One is started with the first request and kept; one that
had to be ended is replaced at the next. Requests and answers are JSON, one a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from awq_edge.errors import ConfigError
from awq_edge.process import children

CPU_SECONDS = 3.0  # of one request
# The limit where a machine is busy with other work, or has no clock for a process's own time.
_WALL_SECONDS = 30.0
_PROGRAM = Path(__file__).with_name("worker.py")
_MOST_PROCESSES = 2  # so that a request that takes its time keeps no other waiting


class _Worker:
    """One process."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        """Raises ConfigError where none can be started."""
        self.owner = os.getpid()
        self._ready = False
        self._end = contextlib.ExitStack()
        try:
            process = children.child(
                [sys.executable, "-I", "-S", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                binary=True,
            )
            self._process = self._end.enter_context(process)
        except OSError as error:
            raise ConfigError(
                f"no process can be started for the model's chat template or tokenizer: "
                f"{error.strerror}"
            ) from None
        # The worker needs only the paths of jinja2 and tokenizers.
        self._send({"path": sys.path, **setup})

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The process's answer; None where it had to be ended, or ended by itself."""
        timer = threading.Timer(_WALL_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            if not self._ready and self._receive() is None:
                raise ConfigError(
                    "the process for the model's chat template or tokenizer does not start: are "
                    "jinja2 and tokenizers installed? (pip install jinja2 tokenizers)"
                )
            self._ready = True
            return self._receive() if self._send(request) else None
        finally:
            timer.cancel()

    @property
    def alive(self) -> bool:
        """True if the process runs still: while it waited somebody may have ended it."""
        return self._process.poll() is None

    @property
    def crashed(self) -> bool:
        """True if the process ended by neither of the limits of time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipe may be closed a moment before
        ends = [-getattr(signal, name, 0) for name in ("SIGPROF", "SIGKILL")]
        return self._process.returncode not in (None, *ends)

    def close(self) -> None:
        """End the process."""
        self._end.close()

    def _send(self, body: Mapping[str, Any]) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(body).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def _receive(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        answer: dict[str, Any] = json.loads(line.decode("utf-8", "surrogatepass"))
        return answer


class WorkerPool:
    """Processes of one kind that wait for work, the latest used first."""

    def __init__(self, setup: Callable[[], Mapping[str, Any]]) -> None:
        """setup: the first line of a process, see `awq_edge.process.worker`."""
        self._setup = setup
        self._free = threading.BoundedSemaphore(_MOST_PROCESSES)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._foreign: list[_Worker] = []
        weakref.finalize(self, _close_all, self._idle)  # also at the end of the program

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer; {"error": "limit", "message"} where the process had to be ended.

        Raises ConfigError where no process can be started, TypeError, ValueError and RecursionError
        for a request that is no JSON.
        """
        with self._free:
            worker = self._take() or self._started()
            answer, crashed = None, False
            try:
                answer = worker.ask(request)
                crashed = answer is None and worker.crashed
            finally:
                # Also where Ctrl-C came: its answer must not become that of the next request.
                if answer is None:
                    worker.close()
                else:
                    self._put(worker)
        if answer is None:
            limit = f"it takes more than {CPU_SECONDS:g} s"
            reason = "it made its process crash" if crashed else limit
            return {"error": "limit", "message": reason}
        return answer

    def warm_up(self) -> None:
        """Start a process for later, without waiting for it."""
        with self._lock:
            if any(worker.owner == os.getpid() for worker in self._idle):
                return
        with contextlib.suppress(ConfigError):  # who needs it will be told
            self._put(self._started())

    def close(self) -> None:
        """End all processes that wait."""
        while (worker := self._take()) is not None:
            worker.close()

    def _started(self) -> _Worker:
        return _Worker(self._setup())

    def _take(self) -> _Worker | None:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.owner != os.getpid():
                    # A process that was forked off shares its parent's pipes. Let go, the worker
                    # would be ended.
                    self._foreign.append(worker)
                elif worker.alive:
                    return worker
                else:
                    worker.close()
            return None

    def _put(self, worker: _Worker) -> None:
        with self._lock:
            self._idle.append(worker)


def _close_all(workers: list[_Worker]) -> None:
    for worker in workers:
        if worker.owner == os.getpid():
            worker.close()
