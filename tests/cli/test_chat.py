"""`awq-edge chat` through pipes, and its commands."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from awq_edge.runtime.conversation import Conversation
from awq_edge.runtime.model import load

from .conftest import Command, Outcome

LIMIT = ("--max-new-tokens", "8", "--threads", "1", "--temperature", "0")


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
    lines = b"Hello\n/reset\nHello\n/help\n/stats\n/exit\nnever\n"
    outcome = piped(awq_edge_command, monkeypatch, lines, tiny_chat_bundle)
    (answer,) = answers(tiny_chat_bundle, ["Hello"])
    assert outcome.out == f"{answer}\n" * 2
    assert "/save FILE" in outcome.err and "1 turn" in outcome.err


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (b"word " * 400, (), "does not fit the context of 256"),
        (b"ab\xff\n", (), "byte 2 is not utf-8"),
        (b"Hi\n", ("--context", "999"), "--context 999 is beyond"),
        (b"Hi\n", ("--temperature", "-1"), "--temperature -1.0: must be"),
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


def typed_at_a_terminal(
    command: Command, monkeypatch: pytest.MonkeyPatch, bundle: Path, *lines: str
) -> Outcome:
    entries = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(entries)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)
    return command("chat", bundle, *LIMIT)


def test_a_conversation_is_saved_reset_and_loaded(
    awq_edge_command: Command,
    tiny_chat_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "my chat.json"
    outcome = typed_at_a_terminal(
        *(awq_edge_command, monkeypatch, tiny_chat_bundle),
        *("Hello", f"/save {file}", "/reset", f"/load {file}", "/stats"),
    )
    assert outcome.code == 0
    assert f"1 turn saved in {file}" in outcome.err
    assert "1 turn loaded" in outcome.err
    saved = json.loads(file.read_text())
    assert [message["content"] for message in saved["messages"]] == ["Hello", outcome.out[:-1]]
    assert saved["model_name"] == "tiny-chat"


def test_errors_of_commands_are_a_line_and_the_chat_goes_on(
    awq_edge_command: Command,
    tiny_chat_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "notes").write_text("mine")
    outcome = typed_at_a_terminal(
        *(awq_edge_command, monkeypatch, tiny_chat_bundle),
        *("/save ~nobody-here/x", "/save " + 300 * "a", "/save a\0b", "/load a\0b"),
        *("/load", f"/load {tmp_path}/no", f"/load {tmp_path}/notes", f"/save {tmp_path}/notes"),
        *(f"/save {tmp_path}/no/where", "/rest", "Hello"),
    )
    assert outcome.code == 0
    found = [line for line in outcome.err.splitlines() if "error: " in line]
    names, errors = found[:4], found[4:]
    assert "there is no home folder" in names[0] and "File name too long" in names[1]
    assert "null byte" in names[2] and "null byte" in names[3]
    assert len(errors) == 6
    assert "/load needs the name of a file" in errors[0]
    assert "does not exist" in errors[1]
    assert "is not valid JSON" in errors[2]
    assert "is no saved conversation" in errors[3]
    assert "cannot be written: No such file" in errors[4]
    assert "there is no command /rest" in errors[5]
    assert (tmp_path / "notes").read_text() == "mine"
    assert outcome.out == f"{answers(tiny_chat_bundle, ['Hello'])[0]}\n"


def test_stats_say_what_the_last_answer_took(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = typed_at_a_terminal(
        *(awq_edge_command, monkeypatch, tiny_chat_bundle), "Hello", "And?", "/stats"
    )
    lines = outcome.err.replace("> ", "").splitlines()  # the prompts
    rows = dict(line.split("  ", 1) for line in lines if "  " in line)
    assert rows["turns"].strip() == "2 turns"
    assert rows["context"].strip().endswith("of 256 tokens are filled")
    assert "of them new" in rows["last prompt"]
    assert {"TTFT", "decode", "KV cache"} <= {name.strip() for name in rows}


def test_dropped_turns_are_told_in_a_pipe_too(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"".join(b"question %d is one of several words\n" % n for n in range(12))
    outcome = piped(awq_edge_command, monkeypatch, lines, tiny_chat_bundle)
    assert outcome.code == 0
    assert outcome.out.count("\n") >= 12
    told = outcome.err.splitlines()
    assert told
    assert all("warning: the context is full: the oldest 1 turn(s)" in line for line in told)


def test_a_command_that_fails_ends_a_pipe(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = piped(awq_edge_command, monkeypatch, b"/load no.json\nHello\n", tiny_chat_bundle)
    assert "no.json does not exist" in outcome.refused()


def test_a_command_that_does_not_exist_ends_a_pipe(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = piped(awq_edge_command, monkeypatch, b"/rest\nHello\n", tiny_chat_bundle)
    assert outcome.code == 2 and outcome.out == ""
    assert "there is no command /rest" in outcome.err


def test_a_text_that_begins_with_a_slash_is_a_message(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = piped(awq_edge_command, monkeypatch, b"/etc is what?\n", tiny_chat_bundle)
    assert outcome.out == f"{answers(tiny_chat_bundle, ['/etc is what?'])[0]}\n"
