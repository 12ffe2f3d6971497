"""Where and how quantize and export work; nothing heavy, because the command line names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from awq_edge.quantizer.cluster.options import LOCAL, ExecutorOptions

# (steps done, steps, the name of the step)
Observer = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RunOptions:
    """The options of one run; the bytes of its result depend on none but the device.

    device: cpu, cuda or cuda:N, to quantize on.
    executor: where blocks are worked on: "local", "ray", or `ExecutorOptions`.
    resume: go on where an interrupted run has stopped.
    overwrite: replace a checkpoint or bundle of ours that the output is.
    observer: called with the steps done, their number and the name of the step.
    """

    device: str = "cpu"
    executor: str | ExecutorOptions = LOCAL
    resume: bool = True
    overwrite: bool = False
    observer: Observer | None = None

    @property
    def workers(self) -> ExecutorOptions:
        """The executor in full. Raises ConfigError for an unknown one."""
        executor = self.executor
        return ExecutorOptions(executor) if isinstance(executor, str) else executor


HERE = RunOptions()
