"""One number out of TensorRT's tree of phases."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


class PhaseTree:
    """The fraction of a build that is done: a phase has steps, and a step may have phases.

    TensorRT does not say how long a phase takes, so that steps of one phase count the same. The
    fraction never falls: a phase that opens late splits what is left of its parent's step.
    """

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._parents: dict[str, str | None] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note that a phase begins.

        steps: the number that it announces.
        parent: None for the root.
        """
        self._steps[name], self._done[name] = max(1, steps), 0
        self._parents[name] = parent if parent in self._steps else None

    def step(self, name: str, step: int) -> None:
        """A step of a phase is done; they are counted from 0."""
        if name in self._steps:
            self._done[name] = min(self._steps[name], step + 1)

    def finish(self, name: str) -> None:
        """A phase is over. A root is kept, as done: TensorRT may open another one."""
        if self._parents.get(name) is None:
            self._done[name] = self._steps.get(name, 1)
            return
        for table in (self._steps, self._done, self._parents):
            table.pop(name, None)

    @property
    def fraction(self) -> float:
        """0 to 1."""
        roots = [name for name, parent in self._parents.items() if parent is None]
        if roots:
            now = sum(self._of(name) for name in roots) / len(roots)
            self._best = max(self._best, min(1.0, now))
        return self._best

    def _of(self, name: str) -> float:
        inside = [self._of(child) for child, parent in self._parents.items() if parent == name]
        current = min(0.999, sum(inside) / len(inside)) if inside else 0.0
        return min(1.0, (self._done[name] + current) / self._steps[name])


def progress_monitor(tensorrt: ModuleType, observe: Callable[[float, str], None]) -> Any:
    """An IProgressMonitor that reports (fraction, phase).

    TensorRT calls it from several threads; Python runs one at a time.
    """
    trt: Any = tensorrt
    tree = PhaseTree()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tree.start(phase_name, parent_phase, num_steps)
            observe(tree.fraction, phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tree.step(phase_name, step)
            observe(tree.fraction, phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            tree.finish(phase_name)
            observe(tree.fraction, phase_name)

    return Monitor()
