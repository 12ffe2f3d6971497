"""`awq-edge chat` through pipes, and its commands."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from awq_edge.runtime.conversation import Conversation
from awq_edge.runtime.model import load

from .conftest import Command, Outcome

LIMIT = ("--max-new-tokens", "8", "--threads", "1")


def piped(
    command: Command, monkeypatch: pytest.MonkeyPatch, lines: bytes, *arguments: object
) -> Outcome:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    return command("chat", *arguments, *LIMIT)


def answers(bundle: Path, messages: list[str]) -> list[str]:
    with load(bundle, threads=1) as model:
        conversation = Conversation(model, max_new_tokens=8)
        return ["".join(conversation.ask(message)) for message in messages]


def test_each_line_of_a_pipe_is_one_message(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = piped(awq_edge_command, monkeypatch, b"Hello\n\nHow are you?", tiny_chat_bundle)
    expected = answers(tiny_chat_bundle, ["Hello", "How are you?"])
    assert outcome.code == 0
    assert outcome.out == "".join(f"{answer}\n" for answer in expected)
    assert outcome.err == ""


def test_reset_forgets_and_exit_leaves(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"Hello\n/reset\nHello\n/help\n/nothing\n/exit\nnever\n"
    outcome = piped(awq_edge_command, monkeypatch, lines, tiny_chat_bundle)
    (answer,) = answers(tiny_chat_bundle, ["Hello"])
    assert outcome.out == f"{answer}\n" * 2


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (b"word " * 400, (), "does not fit the context of 256"),
        (b"ab\xff\n", (), "byte 2 is not utf-8"),
        (b"Hi\n", ("--context", "999"), "--context 999 is beyond"),
        (b"Hi\n", ("--temperature", "-1"), "temperature is -1.0"),
        (b"Hi\n", ("--max-new-tokens", "0"), "--max-new-tokens 0: must be 1 or more"),
    ],
)
def test_refusals(
    awq_edge_command: Command,
    tiny_chat_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: bytes,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    outcome = awq_edge_command("chat", tiny_chat_bundle, *arguments)
    assert message in outcome.refused()


def test_system_prompt_without_a_template(
    awq_edge_command: Command, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = piped(awq_edge_command, monkeypatch, b"Hi\n", tiny_bundle, "--system", "Be brief.")
    assert "has no chat template, so no --system prompt" in outcome.refused()


class Terminal(io.StringIO):
    """Standard input of a person."""

    def isatty(self) -> bool:
        return True


def test_at_a_terminal_ctrl_c_drops_the_line_and_twice_leaves(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["Hello", KeyboardInterrupt(), "word " * 400, KeyboardInterrupt()])

    def read(prompt: str) -> str:
        entry = next(typed, KeyboardInterrupt())
        if isinstance(entry, KeyboardInterrupt):
            raise entry
        return entry

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)
    outcome = awq_edge_command("chat", tiny_chat_bundle, *LIMIT)
    (answer,) = answers(tiny_chat_bundle, ["Hello"])
    assert outcome.code == 0
    assert outcome.out == f"{answer}\n"  # a message that does not fit ends nothing
    assert "does not fit the context" in outcome.err
    assert "tokens/s" in outcome.err
    assert outcome.err.count("Ctrl-C again") == 2
