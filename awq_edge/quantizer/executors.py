"""Where the work on blocks is done: here, or on the machines of a Ray cluster.

The driver runs the blocks' forward passes itself, in order. What is left of a block, see
`awq_edge.quantizer.block_work`, needs only its weights and statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from awq_edge.executor_options import ExecutorOptions
from awq_edge.quantizer.block_work import (
    BlockOutcome,
    BlockTask,
    Statistics,
    Tensors,
    quantize_block,
)

# Waits for the outcome and gives it; raises what the work raised.
Pending = Callable[[], BlockOutcome]


class Executor(Protocol):
    """width: blocks that may be in work at a time, where blocks do not depend on each other."""

    @property
    def width(self) -> int: ...

    def submit(self, task: BlockTask, tensors: Tensors, statistics: Statistics) -> Pending:
        """Begin the work on a block; see `quantize_block`."""

    def close(self) -> None:
        """Give back what the executor holds; work that has begun is abandoned."""


class LocalExecutor:
    """This process, one block at a time."""

    width = 1

    def submit(self, task: BlockTask, tensors: Tensors, statistics: Statistics) -> Pending:
        outcome = quantize_block(task, tensors, statistics)
        return lambda: outcome

    def close(self) -> None:
        """Nothing is held."""


def open_executor(options: ExecutorOptions, device: torch.device, block_bytes: int) -> Executor:
    """The executor of these options.

    block_bytes: weights and statistics of a block, as they travel. Raises RuntimeUnavailableError
    where the cluster cannot be reached or has no machine for a task.
    """
    if options.kind == "local":
        return LocalExecutor()
    from awq_edge.quantizer.ray_executor import RayExecutor

    return RayExecutor(options, device, block_bytes)
