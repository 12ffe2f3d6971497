"""Exports that are watched: their largest allocation, and their death in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

from awq_edge.exporter.bundle import export_checkpoint
from awq_edge.recipe.recipes import Recipe

_KILLED = """
import os, signal, sys
from pathlib import Path
from awq_edge.exporter.bundle import export_checkpoint
from awq_edge.recipe.recipes import load_recipe
calls = 0
def observer(done, total, what):
    global calls
    calls += 1
    if calls == 5:
        os.kill(os.getpid(), signal.SIGKILL)
export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), load_recipe(sys.argv[3]), model_name="x",
                  observer=observer)
"""


def kill_in_the_middle(source: Path, out: Path, recipe: str) -> None:
    """Export in a process that is killed while it writes the weights."""
    command = [sys.executable, "-c", _KILLED, str(source), str(out), recipe]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not out.exists()


def peak_of_export(source: Path, out: Path, recipe: Recipe) -> int:
    """Bytes of the largest allocation at one time, arrays included; imports and caches are warm."""
    export_checkpoint(source, out, recipe, model_name="x", overwrite=True)
    tracemalloc.start()
    try:
        export_checkpoint(source, out, recipe, model_name="x", overwrite=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
