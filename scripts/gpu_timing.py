"""Time of GPU work inside CUDA graphs: no launch cost of Python, medians, buffers beyond the L2."""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
# Data that is read again after this much other data comes from memory: twice the largest L2.
COLD_BYTES = 256 * 2**20
COPY_BYTES = 2**30


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, and the interquartile range of the replays."""

    seconds: float
    spread: float


def time_calls(calls: Sequence[Callable[[], Any]], replays: int = 15) -> Timing:
    """Time of one of `calls`, which are captured one after the other into one graph.

    Give as many calls on different data as it takes for none of it to be in the L2 cache.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(2):
        graph.replay()
    seconds = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / len(calls))
    quartiles = statistics.quantiles(seconds, n=4)
    return Timing(statistics.median(seconds), quartiles[2] - quartiles[0])


def copies_beyond_cache(bytes_per_call: int, at_least: int = 4, at_most: int = 256) -> int:
    """How many calls' data exceed the cache."""
    return min(at_most, max(at_least, -(-COLD_BYTES // bytes_per_call)))


def copy_bandwidth() -> float:
    """bytes/s of a large copy on the device, bytes read and written both counted."""
    source = torch.zeros(COPY_BYTES // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    # The driver's copy, and one by a kernel: the faster of the two is the machine's.
    copies = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
    return 2 * COPY_BYTES / min(time_calls([copy]).seconds for copy in copies)


def environment() -> dict[str, str | None]:
    """What a result depends on: device, driver, versions, commit."""
    asked = "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    return {
        "device": torch.cuda.get_device_name(),
        "driver_and_clocks": _output("nvidia-smi", asked, "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    }


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
