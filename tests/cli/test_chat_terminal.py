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
from awq_edge.runtime.backends.onnxruntime import OnnxRuntimeSession as Session

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

    def __init__(self, *arguments: str, **environment: str) -> None:
        import pty

        self._file, inside = pty.openpty()
        command = [sys.executable, "-c", _SLOW_MAIN, "chat", "--temperature", "0", *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1", **environment},
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

    def rest(self) -> str:
        """What the ended program has printed since the last call."""
        while select.select([self._file], [], [], 0.1)[0]:
            try:
                data = os.read(self._file, 4096)
            except OSError:
                break
            if not data:
                break
            self.shown += data.decode("utf-8", "replace")
        found, self._seen = self.shown[self._seen :], len(self.shown)
        return found

    def terminate(self) -> None:
        self._process.terminate()

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


def begin(bundle: Path, history: Path, term: str = "xterm-256color") -> Terminal:
    """A chat whose answers are four tokens long, at its prompt."""
    terminal = Terminal(
        *(str(bundle), "--max-new-tokens", "4", "--threads", "1", "--temperature", "0"),
        TERM=term,
        AWQ_EDGE_HISTORY=str(history),
    )
    terminal.wait_for("> ")
    return terminal


def test_what_was_typed_is_called_back_in_the_next_chat(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline", reason="this Python has no readline")
    history = tmp_path / "history"
    first = begin(tiny_bundle, history)
    try:
        first.type(b'"""one two\n')
        first.wait_for(". ")
        first.type(b'three"""\n')
        first.wait_for("4 tokens")
        first.wait_for("> ")
        assert first.leave(CTRL_D) == 0
    finally:
        first.close()
    assert json.loads(history.read_text()) == "one two\nthree"
    second = begin(tiny_bundle, history)
    try:
        second.type(b"\x10\n")  # Ctrl-P, the message before; as it is
        second.wait_for("4 tokens")
        second.wait_for("> ")
        assert second.leave(CTRL_D) == 0
    finally:
        second.close()
    assert [json.loads(line) for line in history.read_text().splitlines()] == 2 * ["one two\nthree"]


def test_tab_completes_commands_settings_and_files(tiny_bundle: Path, tmp_path: Path) -> None:
    readline = pytest.importorskip("readline", reason="this Python has no readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip(reason="libedit has no bracketed paste, without which Tab is text")
    (tmp_path / "my chats").mkdir()
    chat = begin(tiny_bundle, tmp_path / "history")
    try:
        chat.type(b"/sho\tpar\t\n")
        chat.wait_for("repetition_penalty")
        chat.type(b"/set repet\t 1.5\n")
        chat.wait_for("repetition_penalty is 1.5")
        chat.type(f"/load {tmp_path}/my\tgone\n".encode())
        chat.wait_for(f"{tmp_path}/my chats/gone does not exist")
        assert chat.leave(CTRL_D) == 0
    finally:
        chat.close()


def test_a_paste_of_several_lines_is_one_message(tiny_bundle: Path, tmp_path: Path) -> None:
    readline = pytest.importorskip("readline", reason="this Python has no readline")
    if "libedit" in (readline.__doc__ or ""):
        pytest.skip(reason="libedit has no bracketed paste")
    history = tmp_path / "history"
    chat = begin(tiny_bundle, history)
    try:
        chat.type(b"\x1b[200~" + b"x" * 6000 + b"\n\ty\n/exit\n\x1b[201~\r")
        chat.wait_for("error: the message makes a prompt of 60")  # one message, and all of it
        chat.wait_for("> ")
        assert chat.leave(CTRL_D) == 0
    finally:
        chat.close()
    entry = json.loads(history.read_text())
    assert entry.startswith("x" * 6000 + "\n") and entry.rstrip().endswith("/exit")


def test_a_paste_into_a_dumb_terminal_is_one_message(tiny_bundle: Path, tmp_path: Path) -> None:
    """Which does not say what is pasted: its lines come at once."""
    history = tmp_path / "history"
    chat = begin(tiny_bundle, history, term="dumb")
    try:
        chat.type(b"one\ntwo\n/exit\n")
        chat.wait_for("4 tokens")
        chat.wait_for("> ")
        assert chat.leave(CTRL_D) == 0
    finally:
        chat.close()
    assert json.loads(history.read_text()) == "one\ntwo\n/exit"


def test_ctrl_d_leaves_a_line_of_its_own_behind(tiny_bundle: Path, tmp_path: Path) -> None:
    chat = begin(tiny_bundle, tmp_path / "history")
    try:
        time.sleep(_MOMENT)
        chat.type(CTRL_D)
        assert chat.code() == 0
        assert "\n" in chat.rest()
    finally:
        chat.close()


def test_a_dumb_terminal_gets_no_escapes(tiny_bundle: Path, tmp_path: Path) -> None:
    chat = begin(tiny_bundle, tmp_path / "history", term="dumb")
    try:
        chat.type(b"Hello\n")
        chat.wait_for("4 tokens")
        chat.wait_for("> ")
        assert chat.leave(CTRL_D) == 0
        chat.rest()
        assert "\x1b" not in chat.shown
    finally:
        chat.close()


def test_sigterm_in_an_answer_ends_the_program_in_a_line(chat: Terminal) -> None:
    chat.wait_for("> ")
    chat.type(b"Once upon a time\n")
    chat.wait_for("Once upon a time\r\n")
    time.sleep(_MOMENT)
    chat.terminate()
    assert chat.code() == 143
    assert "error: ended by SIGTERM" in chat.rest()
