"""`awq-edge chat` at a real terminal: a pseudo-terminal, with Ctrl-C typed into it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

_PATIENCE = 30.0
# From the echo of a line to its answer: a Ctrl-C between the two drops the line, rightly.
_MOMENT = 0.4
# Each token takes 20 ms more, so that there is an answer to stop.
_SLOW_MAIN = """
import fcntl, signal, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that it is this program that Ctrl-C is for
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
from awq_edge.backends.onnxruntime import OnnxRuntimeSession as Session

decode = Session.decode
def slow(self, token_id):
    time.sleep(0.02)
    return decode(self, token_id)
Session.decode = slow
from awq_edge.cli import main; main()
"""
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A program at a pseudo-terminal. What the terminal's own driver does, Ctrl-C as SIGINT among
    it, is the system's."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self._file, inside = pty.openpty()
        command = [sys.executable, "-c", _SLOW_MAIN, "chat", "--temperature", "0", *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
        )
        os.close(inside)
        self.shown = ""
        self._seen = 0

    def type(self, keys: bytes) -> None:
        os.write(self._file, keys)

    def wait_for(self, text: str) -> str:
        """Read until `text` comes; what came before it since the last call."""
        end = time.monotonic() + _PATIENCE
        while (place := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < end, f"{text!r} does not come: {self.shown[-500:]!r}"
            if select.select([self._file], [], [], 0.1)[0]:
                try:
                    data = os.read(self._file, 4096)
                except OSError:  # the program has ended
                    data = b""
                assert data, f"{text!r} does not come, and no more: {self.shown[-500:]!r}"
                self.shown += data.decode("utf-8", "replace")
        found = self.shown[self._seen : place]
        self._seen = place + len(text)
        return found

    def code(self) -> int:
        """The exit code, once the program has ended."""
        return self._process.wait(_PATIENCE)

    def leave(self, keys: bytes) -> int:
        """Type until the program has ended: a signal that comes before readline waits for a key is
        seen with the next key alone."""
        end = time.monotonic() + _PATIENCE
        while self._process.poll() is None:
            assert time.monotonic() < end, f"the program stays: {self.shown[-500:]!r}"
            time.sleep(_MOMENT)
            with contextlib.suppress(OSError):  # it has ended in this moment
                self.type(keys)
        return self.code()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._file)


@pytest.fixture
def chat(tiny_bundle: Path) -> Iterator[Terminal]:
    """Greedy, up to 200 tokens of an answer."""
    terminal = Terminal(str(tiny_bundle), "--max-new-tokens", "200", "--threads", "1")
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Terminal, tmp_path: Path) -> None:
    chat.wait_for("> ")
    chat.type(b"Once upon a time\n")
    chat.wait_for("Once upon a time\r\n")  # the terminal's echo; the answer begins
    time.sleep(_MOMENT)
    chat.type(CTRL_C)
    assert "200 tokens" not in chat.wait_for(", stopped")
    chat.wait_for("> ")
    chat.type(b"Again\n")
    chat.wait_for("Again\r\n")
    time.sleep(_MOMENT)
    chat.type(CTRL_C)
    chat.wait_for("stopped")
    chat.wait_for("> ")
    file = tmp_path / "chat.json"
    chat.type(b"/save " + os.fsencode(file) + b"\n")
    chat.wait_for("saved in")
    chat.wait_for("> ")
    assert len(json.loads(file.read_text())["messages"]) >= 2
    time.sleep(_MOMENT)
    chat.type(CTRL_C)
    chat.wait_for("Ctrl-C again")
    chat.wait_for("> ")
    assert chat.leave(CTRL_C) == 0


def test_two_ctrl_c_in_an_answer_leave_the_program_running(chat: Terminal) -> None:
    chat.wait_for("> ")
    chat.type(b"Once upon a time\n")
    chat.wait_for("Once upon a time\r\n")
    time.sleep(_MOMENT)
    chat.type(CTRL_C)
    chat.type(CTRL_C)
    chat.wait_for("stopped")
    # The second one may come when the prompt is there again; it drops what was typed until then.
    time.sleep(_MOMENT)
    chat.type(b"\n/stats\n")
    chat.wait_for("tokens are filled")
    chat.wait_for("> ")
    assert chat.leave(CTRL_D) == 0


def test_the_line_can_be_edited_and_called_back(chat: Terminal) -> None:
    pytest.importorskip("readline", reason="this Python has no readline")
    chat.wait_for("> ")
    chat.type(b"/nothin\n")
    chat.wait_for("there is no command /nothin;")
    chat.wait_for("> ")
    chat.type(b"\x10")  # Ctrl-P, the line before
    chat.type(b"g\n")
    chat.wait_for("there is no command /nothing;")
    chat.wait_for("> ")
    chat.type(b"/exit\n")
    assert chat.code() == 0
