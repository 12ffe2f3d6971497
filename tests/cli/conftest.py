"""The command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from awq_edge.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command printed and its exit code."""

    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The one line of an error of the user's: exit code 2, nothing on standard output."""
        assert self.code == 2, self
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line


@pytest.fixture(autouse=True)
def _no_history_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats of tests read and write none."""
    monkeypatch.setenv("AWQ_EDGE_HISTORY", "")


Command = Callable[..., Outcome]


@pytest.fixture
def awq_edge_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run `awq-edge ARGUMENTS...` as the console script does."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["awq-edge", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return run
