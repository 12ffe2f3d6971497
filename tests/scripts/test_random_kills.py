"""scripts/random_kills.py on a few moments; thousands are its own business."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "random_kills.py"


@pytest.mark.slow
def test_kills_at_random_moments_change_no_byte_and_leave_nothing() -> None:
    commands = ("export", "into a folder", "replace")
    named = [argument for name in commands for argument in ("--command", name)]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--runs", "4", "--seed", "3", *named],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 4 failed" in done.stdout
