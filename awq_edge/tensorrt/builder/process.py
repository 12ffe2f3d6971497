"""The process that builds an engine, from outside: its replies, its end, the memory it took."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

from pydantic import TypeAdapter

from awq_edge import errors
from awq_edge._package import PACKAGE
from awq_edge.device.system_memory import read_system_memory
from awq_edge.errors import AwqEdgeError, ResourceError, RuntimeUnavailableError
from awq_edge.process.children import child
from awq_edge.tensorrt.builder.job import BuildJob, Failed, Finished, Progress
from awq_edge.tensorrt.engines.manifest import BuildFigures

_REPLY: TypeAdapter[Progress | Finished | Failed] = TypeAdapter(Progress | Finished | Failed)
_SAMPLED_EVERY = 0.2  # seconds
_LAST_WORDS = 300  # characters of what a dying process said

Observer = Callable[[float, str], None]


def run_job(job: BuildJob, observe: Observer) -> BuildFigures:
    """Build in a child process.

    observe: called with fraction and phase.

    Raises what the child raised; ResourceError where the system killed it, RuntimeUnavailableError
    where TensorRT ended it, with its last words.
    """
    with (
        tempfile.TemporaryFile() as words,
        _worker(words.fileno()) as process,
        _MemoryWatch() as watch,
    ):
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job.model_dump_json())
            process.stdin.close()
        last: Finished | Failed | None = None
        phase = "starting"
        for line in process.stdout:
            message = _REPLY.validate_json(line)
            if isinstance(message, Progress):
                phase = message.phase
                observe(message.fraction, phase)
            else:
                last = message
        code = process.wait()
        if isinstance(last, Failed):
            raise _error(last)
        if last is None or code != 0:
            raise _died(job, code, phase, _last_words(words.fileno()))
    return BuildFigures(
        seconds=last.seconds,
        peak_rss=last.peak_rss,
        available_before=watch.before,
        available_drop=watch.drop,
        warnings=last.warnings,
    )


@contextlib.contextmanager
def _worker(stderr: int) -> Iterator[subprocess.Popen[str]]:
    """The process; killed when the block is left early."""
    # The package that runs here, wherever the child would look for it.
    package = str(PACKAGE.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    with child(
        [sys.executable, "-m", "awq_edge.tensorrt.builder.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        yield process


class _MemoryWatch:
    """The fall of the system's available memory during a build."""

    def __init__(self) -> None:
        memory = read_system_memory()
        self.before = memory.available if memory is not None else None
        self._least = self.before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def drop(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self.before is None or self._least is None:
            return None
        return max(0, self.before - self._least)

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLED_EVERY):
            memory = read_system_memory()
            if memory is not None and self._least is not None:
                self._least = min(self._least, memory.available)

    def __enter__(self) -> _MemoryWatch:
        if self.before is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


def _error(failed: Failed) -> AwqEdgeError:
    kind = getattr(errors, failed.error, RuntimeUnavailableError)
    error: AwqEdgeError = kind(failed.message)
    return error


def _died(job: BuildJob, code: int, phase: str, words: str) -> AwqEdgeError:
    said = f"; its last words: {words}" if words else ""
    if code == -signal.SIGKILL:
        return ResourceError(
            f"the system killed {job.module} while it built {job.graph} for {job.sm} ({phase}): "
            "most likely memory ran out; close other programs, or add swap (docs/jetson.md)"
        )
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return RuntimeUnavailableError(
        f"{job.module} ended with {how} while it built {job.graph} for {job.sm} ({phase}){said}"
    )


def _last_words(descriptor: int) -> str:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    os.lseek(descriptor, max(0, size - 8 * _LAST_WORDS), os.SEEK_SET)
    text = os.read(descriptor, 8 * _LAST_WORDS).decode("utf-8", errors="replace")
    return " ".join(text.split())[-_LAST_WORDS:]
