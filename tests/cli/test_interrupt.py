"""Ctrl-C: politely once, then at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from awq_edge.cli.interrupt import Interrupt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to itself")


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_is_a_request_and_the_second_an_end() -> None:
    with Interrupt() as interrupt:
        assert not interrupt.requested()
        press_ctrl_c()
        assert interrupt.requested()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_before_anybody_asked_it_ends_at_once() -> None:
    with Interrupt(), pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_outside_it_is_what_it_was_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt = Interrupt()
    with interrupt:
        assert signal.getsignal(signal.SIGINT) != before
        interrupt.requested()
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) == before
    with interrupt:  # the next answer starts anew
        assert not interrupt.requested()


_PRESSED = "os.kill(os.getpid(), signal.SIGINT); time.sleep(20)\n"


def _ended(*arguments: str, path: Path | None = None) -> tuple[int, str]:
    root = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, [path and str(path), root]))
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_little_is_imported_before_ctrl_c_is_one_line() -> None:
    """Until then it is the interpreter's traceback."""
    script = (
        "import sys, os; before = set(sys.modules)\n"
        "import awq_edge.__main__\n"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    code, said = _ended("-S", "-c", script)
    assert code == 0
    assert said.split() == ["awq_edge", "awq_edge.__main__"]


def test_while_the_package_is_imported_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(f"import os, signal, time\n{_PRESSED}", encoding="utf-8")
    code, said = _ended("-m", "awq_edge", "fit", "demo", path=tmp_path)
    assert (code, said.count("\n")) == (130, 1)
    assert said.startswith("error: interrupted: nothing was begun")


def test_while_options_are_read_it_is_one_line() -> None:
    script = (
        "import os, signal, sys, time, typer.core\n"
        "def parse_args(self, ctx, args):\n"
        f"    {_PRESSED}"
        "typer.core.TyperGroup.parse_args = parse_args\n"
        "from awq_edge.__main__ import main; main()"
    )
    code, said = _ended("-c", script, "fit", "demo")
    assert (code, said.count("\n")) == (130, 1)
    assert said.startswith("error: interrupted: ")
