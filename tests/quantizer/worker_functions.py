"""What test_ray.py lets workers do instead of their work. Ray's workers import this module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from awq_edge.errors import ModelError
from awq_edge.quantizer.blocks import work as block

quantize_block = block.quantize_block
round_linears = block.round_linears

# Where the driver's test says what is to happen; inherited by the workers.
FOLDER = "AWQ_EDGE_TEST_FOLDER"


def first_time(what: str) -> bool:
    """Whether `what` happens for the first time, in whatever process."""
    try:
        (Path(os.environ[FOLDER]) / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die_in_block_1(task: Any, *rest: Any, **options: Any) -> Any:
    """The work on a block; the worker kills itself in block 1, the first time."""
    if task.layer == 1 and first_time("died"):
        os.kill(os.getpid(), signal.SIGKILL)
    return quantize_block(task, *rest, **options)


def die_in_down_proj(task: Any, names: Any, *rest: Any) -> Any:
    """The rounding of linears; the worker kills itself in block 1's down_proj, the first time."""
    if task.layer == 1 and names == ["mlp.down_proj"] and first_time("died"):
        os.kill(os.getpid(), signal.SIGKILL)
    return round_linears(task, names, *rest)


def always_die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def hang_on_one_machine(task: Any, *rest: Any, **options: Any) -> Any:
    """The work on a block; the first time in block 1, its machine's id goes to the test, which
    takes the machine away."""
    if task.layer == 1 and first_time("hung"):
        import ray

        name = ray.get_runtime_context().get_node_id()
        (Path(os.environ[FOLDER]) / "machine").write_text(name)
        time.sleep(600)
    return quantize_block(task, *rest, **options)


def refuse_block_1(task: Any, *rest: Any, **options: Any) -> Any:
    if task.layer == 1:
        raise ModelError("block 1 is not to be had; take another")
    return quantize_block(task, *rest, **options)


def divide_by_zero(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("a defect")
