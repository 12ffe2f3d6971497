"""Builds one engine, in a process of its own: TensorRT can end it, and its memory is measured.

    python -m awq_edge.tensorrt.builder.worker < BuildJob

Replies go to standard output, a line of JSON each; whatever else is printed, to standard error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.input_files import read_bytes
from awq_edge.artifacts.paths import is_disk_full
from awq_edge.errors import ArtifactError, AwqEdgeError, ResourceError, RuntimeUnavailableError
from awq_edge.runtime.memory import read_process_memory
from awq_edge.tensorrt.builder.job import BuildJob, Failed, Finished, Progress
from awq_edge.tensorrt.builder.network import add_profiles, parse
from awq_edge.tensorrt.builder.progress import progress_monitor
from awq_edge.tensorrt.engines.loading import TensorrtLog
from awq_edge.tensorrt.module import load_tensorrt

_LARGEST_CACHE = 1 << 30  # bytes
_REPORTED = 0.005  # the step of a progress bar


def main() -> None:
    """Build the engine that standard input asks for."""
    replies = _take_standard_output()
    job = BuildJob.model_validate_json(sys.stdin.read())

    def send(message: Progress | Finished | Failed) -> None:
        replies.write(message.model_dump_json() + "\n")
        replies.flush()

    start = time.perf_counter()
    try:
        warnings = build(job, send)
    except AwqEdgeError as error:
        send(Failed(error=type(error).__name__, message=str(error)))
    except OSError as error:
        if not is_disk_full(error):
            raise
        send(Failed(error=ResourceError.__name__, message=f"{job.engine}: the disk is full"))
    else:
        seconds, peak = time.perf_counter() - start, read_process_memory().peak_rss
        send(Finished(seconds=seconds, peak_rss=peak, warnings=tuple(warnings)))


def _take_standard_output() -> TextIO:
    """The file of the replies. What libraries print goes to standard error from here on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def build(job: BuildJob, send: Any) -> list[str]:
    """Write the engine; TensorRT's warnings. Raises AwqEdgeError."""
    trt: Any = load_tensorrt(job.module)
    log = TensorrtLog(trt)
    try:
        builder = trt.Builder(log.logger)
    except TypeError:  # the bindings' word for a null pointer
        raise RuntimeUnavailableError(
            f"{job.module} {trt.__version__} cannot build on this machine: {log.reason()}"
        ) from None
    if job.plugins:
        from awq_edge.tensorrt.plugin import register

        register(trt)
    network, parser = parse(trt, builder, job, log)
    config = _config(trt, builder, job)
    add_profiles(trt, builder, network, config, job)
    monitor = progress_monitor(trt, _observer(send))
    config.progress_monitor = monitor
    cache = _timing_cache(config, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeUnavailableError(
            f"{job.module} {trt.__version__} does not build {job.graph} for {job.sm}: "
            f"{log.reason()}"
        )
    with open(job.engine, "wb") as file:
        file.write(memoryview(plan))
    if cache is not None and job.timing_cache is not None:
        _keep(cache, Path(job.timing_cache))
    del parser
    return log.warnings


def _config(trt: Any, builder: Any, job: BuildJob) -> Any:
    config = builder.create_builder_config()
    if job.module == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        current = trt.ComputeCapability.CURRENT  # of a GPU that it has no name for
        config.set_compute_capability(getattr(trt.ComputeCapability, job.sm, current), 0)
        # All memory of a run comes from the session, and a decode step can be captured in a graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if job.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    return config


def _observer(send: Any) -> Any:
    reported = [-1.0]

    def observe(fraction: float, phase: str) -> None:
        if fraction >= reported[0] + _REPORTED or fraction == 1.0 != reported[0]:
            reported[0] = fraction
            send(Progress(fraction=fraction, phase=phase))

    return observe


def _timing_cache(config: Any, job: BuildJob) -> Any:
    """The cache of earlier builds on this device, in use; None where the job has none.

    TensorRT itself refuses one of another version or device; then this build fills a new one.
    """
    if job.timing_cache is None:
        return None
    content = b""
    with contextlib.suppress(ArtifactError):
        content = read_bytes(Path(job.timing_cache), limit=_LARGEST_CACHE, error=ArtifactError)
    for candidate in (content, b"") if content else (b"",):
        cache = config.create_timing_cache(candidate)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _keep(cache: Any, path: Path) -> None:
    """Write a timing cache; a build is not lost because that fails."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as work:
            work.write_bytes(memoryview(cache.serialize()))


if __name__ == "__main__":
    main()
