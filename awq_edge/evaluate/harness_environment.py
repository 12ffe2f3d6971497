"""The surroundings in which lm-evaluation-harness runs here: nothing of it on standard output, its
warnings kept for the report, its progress bars off, code execution only where it was allowed."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

# The permission that the metric which runs code (code_eval of the evaluate library) looks for.
_CODE_VARIABLE = "HF_ALLOW_CODE_EVAL"
# Without it standard errors are computed in forked processes; the runtime has threads by then.
_ONE_PROCESS_VARIABLE = "DISABLE_MULTIPROC"


@contextlib.contextmanager
def harness_environment(*, allow_code_execution: bool) -> Iterator[list[str]]:
    """Yields the list that the harness's warnings are added to, each once."""
    warnings = _Warnings()
    logger = logging.getLogger("lm_eval")
    propagate = logger.propagate
    logger.addHandler(warnings)
    logger.propagate = False
    variables = {_ONE_PROCESS_VARIABLE: "1", _CODE_VARIABLE: "1" if allow_code_execution else "0"}
    try:
        with (
            _variables(variables),
            _without_bars(),
            contextlib.redirect_stdout(sys.stderr),  # standard output may be the report's
        ):
            yield warnings.texts
    finally:
        logger.removeHandler(warnings)
        logger.propagate = propagate


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self.texts:
            self.texts.append(text)


@contextlib.contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Draw no tqdm bars inside the block: the harness has no switch for its own, and ours is
    there."""
    from tqdm.std import tqdm

    original = tqdm.__init__

    def disabled(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **{**options, "disable": True})

    tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.__init__ = original
