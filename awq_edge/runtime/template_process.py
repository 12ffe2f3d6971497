"""Chat templates rendered by processes that are ended when a template takes too much.

A process is started with the first template and kept: rendering then costs less than a
millisecond. One that had to be ended is replaced at the next request.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awq_edge import children
from awq_edge.errors import ConfigError, ModelError

# Of one rendering. A conversation of a million characters takes some milliseconds of them.
CPU_SECONDS = 3.0
MEMORY_BYTES = 512 << 20
CHARACTERS = 16_000_000
# Of a machine that is busy with other work, or has no clock for a process's own time.
_WALL_SECONDS = 30.0
_MOST_PROCESSES = 2  # so that one template that takes its time keeps no other waiting
_PROGRAM = Path(__file__).with_name("template_worker.py")


class TemplateLimitError(ConfigError):
    """A chat template was ended as it takes too much."""


def render(source: str, variables: Mapping[str, Any] | None) -> str:
    """The text of a template, by a process of its own; None compiles it alone.

    Raises ModelError for a template that is no Jinja, ConfigError where it refuses the messages
    or exceeds a limit.
    """
    answer = _pool.ask({"source": source, "variables": variables})
    if "text" in answer:
        return str(answer["text"])
    message = " ".join(str(answer["message"]).split())[:500]
    if answer["error"] == "syntax":
        where = f" in line {answer['line']}" if answer["line"] else ""
        raise ModelError(
            f"the chat template is broken: a syntax error{where}: {message}; correct it, give "
            "another by --chat-template FILE, or send the prompt as it is (--raw)"
        )
    if answer["error"] == "limit":
        raise TemplateLimitError(
            f"the chat template was ended: {message}; give another by --chat-template FILE, or "
            "send the prompt as it is (--raw)"
        )
    raise ConfigError(f"the chat template refused the messages: {message}")


def warm_up() -> None:
    """Start a process that will be needed, without waiting for it."""
    _pool.warm_up()


class _Worker:
    """One process."""

    def __init__(self) -> None:
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
                f"no process can be started to render the chat template: {error.strerror}; send "
                "the prompt as it is (--raw)"
            ) from None
        self._send(
            {
                "path": sys.path,
                "memory_bytes": MEMORY_BYTES,
                "cpu_seconds": CPU_SECONDS,
                "characters": CHARACTERS,
            }
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Its answer; None where it had to be ended, or ended by itself."""
        timer = threading.Timer(_WALL_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            if not self._ready and self._receive() is None:
                raise ConfigError(
                    "the process that renders chat templates does not start: is jinja2 installed? "
                    "(pip install jinja2)"
                )
            self._ready = True
            return self._receive() if self._send(request) else None
        finally:
            timer.cancel()

    @property
    def crashed(self) -> bool:
        """Whether it ended by neither of the limits of time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # its pipe may be closed a moment before
        ends = [-getattr(signal, name, 0) for name in ("SIGPROF", "SIGKILL")]
        return self._process.returncode not in (None, *ends)

    def close(self) -> None:
        """End it."""
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


class _Pool:
    """Processes that wait for work, the latest used first."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(_MOST_PROCESSES)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._free:
            worker = self._take() or _Worker()
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
            reason = "it made the process crash that renders it" if crashed else limit
            return {"error": "limit", "message": reason}
        return answer

    def warm_up(self) -> None:
        with self._lock:
            if any(worker.owner == os.getpid() for worker in self._idle):
                return
        with contextlib.suppress(ConfigError):  # who needs it will be told
            self._put(_Worker())

    def close(self) -> None:
        while (worker := self._take()) is not None:
            worker.close()

    def _take(self) -> _Worker | None:
        with self._lock:
            # A process that was forked off shares its parent's pipes.
            self._idle = [worker for worker in self._idle if worker.owner == os.getpid()]
            return self._idle.pop() if self._idle else None

    def _put(self, worker: _Worker) -> None:
        with self._lock:
            self._idle.append(worker)


_pool = _Pool()
atexit.register(_pool.close)
