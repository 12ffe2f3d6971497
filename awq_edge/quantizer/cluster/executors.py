"""Where the work on blocks is done: here, or on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.sizes import block_bytes
from awq_edge.quantizer.blocks.task import BlockOptions
from awq_edge.quantizer.blocks.work import Run
from awq_edge.quantizer.cluster.options import ExecutorOptions


class Executor(Protocol):
    """blocks: calls for whole blocks, some of them in work at a time. parts: calls for the parts of
    one block, all of them at once."""

    @property
    def blocks(self) -> Run: ...

    @property
    def parts(self) -> Run: ...


@contextmanager
def open_executor(
    options: ExecutorOptions, checkpoint: Checkpoint, block: BlockOptions, device: torch.device
) -> Iterator[Executor | None]:
    """The executor of these options, None for this process; work that has begun is abandoned at the
    end. Raises RuntimeUnavailableError where the cluster cannot be reached or has no machine for a
    task.
    """
    if options.kind == "local":
        yield None
        return
    from awq_edge.quantizer.cluster.ray_executor import RayExecutor

    stored = {entry.dtype for entry in checkpoint.files.entries.values()}
    size = block_bytes(
        checkpoint.decoder, block.statistics_budget, element_bytes=4 if "F32" in stored else 2
    )
    executor = RayExecutor(options, device, size)
    try:
        yield executor
    finally:
        executor.close()
