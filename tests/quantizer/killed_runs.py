"""Quantizations in processes that kill themselves (SIGKILL), as a user or the kernel may.

A server forks them after it has imported what they need: importing takes several times as long as
they do. It never computes, so that there are no threads which a fork would lose.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Each is imported by the server, before it forks.
PRELOADED = ["awq_edge.quantizer", "awq_edge.quantizer.stage", "transformers.models.llama"]
SETTINGS: dict[str, Any] = {"group_size": 32, "samples": 4, "length": 64}
TIMEOUT_SECONDS = 300


def run_and_kill(model: Path, out: Path, text: Path, method: str, blocks: int) -> None:
    """Quantize in a process that kills itself when `blocks` blocks are finished."""
    _must_be_killed(_kill_after_blocks, model, out, text, method, blocks)


def kill_in(model: Path, out: Path, text: Path, function: str, call: int) -> None:
    """Quantize by AWQ in a process that kills itself when it calls a function for the n-th time.

    function: of `awq_edge.quantizer`, with its module: "search.gptq:gptq_round".
    """
    _must_be_killed(_kill_at_call, model, out, text, function, call)


def _must_be_killed(target: Callable[..., None], *arguments: object) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # With another number of threads than this process the work would start over.
    process = context.Process(target=target, args=(torch.get_num_threads(), *arguments))
    process.start()
    process.join(TIMEOUT_SECONDS)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_after_blocks(
    threads: int, model: Path, out: Path, text: Path, method: str, blocks: int
) -> None:
    def observe(done: int, total: int, what: str) -> None:
        if done == blocks:
            _kill()

    _quantize(threads, model, out, text, method=method, observer=observe)


def _kill_at_call(
    threads: int, model: Path, out: Path, text: Path, function: str, call: int
) -> None:
    module, _, path = function.partition(":")
    names = path.split(".")
    owner: Any = importlib.import_module(f"awq_edge.quantizer.{module}")
    for name in names[:-1]:
        owner = getattr(owner, name)
    original, left = getattr(owner, names[-1]), [call]

    def counted(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            _kill()
        return original(*args, **options)

    setattr(owner, names[-1], counted)
    _quantize(threads, model, out, text, method="awq")


def _quantize(
    threads: int, model: Path, out: Path, text: Path, observer: Any = None, **options: Any
) -> None:
    import awq_edge

    torch.set_num_threads(threads)
    recipe = awq_edge.load_recipe(**SETTINGS, **options)
    run = awq_edge.RunOptions(observer=observer)
    awq_edge.quantize(model, out, recipe, calibration=text, run=run)
