"""Messages of several lines, the history, settings, and commands that other programs have."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

import awq_edge
from awq_edge.cli.chat_commands import ChatCommands
from awq_edge.cli.chat_history import History, history_file
from awq_edge.cli.chat_input import MessageReader, opens, quoted
from awq_edge.cli.chat_settings import parse_setting
from awq_edge.cli.interrupt import Interrupt
from awq_edge.errors import ConfigError
from awq_edge.runtime.conversation import Conversation

from .conftest import Command
from .test_chat import answers, piped, typed_at_a_terminal


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"""one"""'], "one"),
        (['"""one', 'two"""'], "one\ntwo"),
        (['  """', "one", "", "  two", '"""  '], "one\n\n  two"),
        (['"""', '"""'], ""),
        (['"""say "hi" and ""', '"""'], 'say "hi" and ""'),
    ],
)
def test_quotes_hold_several_lines(lines: list[str], message: str) -> None:
    following = iter(lines[1:])
    assert opens(lines[0])
    assert quoted(lines[0], lambda: next(following)) == message
    assert list(following) == []


def test_of_a_pipe_quotes_hold_several_lines(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b'"""Hello\n\nHow are you?"""\nand a backslash \\\n'
    outcome = piped(awq_edge_command, monkeypatch, lines, tiny_chat_bundle)
    assert outcome.err == ""
    expected = answers(tiny_chat_bundle, ["Hello\n\nHow are you?", "and a backslash \\"])
    assert outcome.out == "".join(f"{answer}\n" for answer in expected)


def test_of_a_pipe_quotes_are_closed(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = piped(awq_edge_command, monkeypatch, b'"""Hello\n', tiny_chat_bundle)
    assert 'standard input ends in a message that """ began' in outcome.refused()


def test_typed_lines_are_continued(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = typed_at_a_terminal(
        awq_edge_command, monkeypatch, tiny_chat_bundle, "Hello \\", "and", '"""more', '"""'
    )
    expected = answers(tiny_chat_bundle, ["Hello \nand", "more"])
    assert outcome.out == "".join(f"{answer}\n" for answer in expected)


def test_history_lasts_and_holds_lines(tmp_path: Path) -> None:
    file = tmp_path / "state" / "chat_history"
    history = History(file)
    assert history.entries() == []
    for entry in ("Hello", "null\0", "half \udcff", "one\ntwo", "\x1b[2J", "Grüße"):
        history.add(entry)
    assert History(file).entries() == ["Hello", "one\ntwo", "\x1b[2J", "Grüße"]
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open("a") as out:
        out.write('no json\n{"a": 1}\n"last"\n')
    assert History(file).entries()[-1] == "last"
    assert len(History(file).entries()) == 5


def test_history_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "chat_history"
    file.write_text("".join(json.dumps(str(n)) + "\n" for n in range(5000)))
    assert History(file).entries() == [str(n) for n in range(4000, 5000)]
    assert len(file.read_text().splitlines()) == 1000
    History(file).add("x" * 1_000_000)
    assert History(file).entries()[-1] == "4999"


@pytest.mark.parametrize("place", ["/proc/none/history", "/dev/full", "."])
def test_a_history_that_cannot_be_kept_is_no_error(place: str) -> None:
    history = History(Path(place))
    history.add("Hello")
    assert history.entries() == []


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWQ_EDGE_HISTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "awq-edge" / "chat_history"
    monkeypatch.setenv("AWQ_EDGE_HISTORY", "")
    assert history_file() is None
    monkeypatch.setenv("AWQ_EDGE_HISTORY", str(tmp_path / "mine"))
    assert history_file() == tmp_path / "mine"


def test_what_tab_offers(
    tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.json", "one two.json", ".hidden", "bad\x1b[2J"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()

    def nothing(*_: object) -> None: ...

    with awq_edge.load(tiny_chat_bundle) as model:
        talk = Conversation(model)
        commands = ChatCommands(talk, model, Interrupt(), nothing, nothing, nothing)
        offered = commands.completions
        assert offered("/re") == ["/reset", "/regen", "/retry"]
        assert offered("/sa") == ["/save ", "/save! "]
        assert offered("/show t") == ["/show template"]
        assert offered("/set top") == ["/set top_k", "/set top_p"]
        assert offered("/load ") == ["/load folder/", "/load one two.json", "/load one.json"]
        assert offered("/load one ") == ["/load one two.json"]
        assert offered("/save .h") == ["/save .hidden"]
        for line in ("", "Hello", "/etc is", "/load ~nobody-here/", "/load no/x", "/load a\0/"):
            assert offered(line) == []
        for switch in ("/no_think", " /think ", "/nothink"):
            assert not commands.is_command(switch)
        assert commands.is_command("/nothing")


def test_a_pipe_leaves_no_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    reader = MessageReader(lambda text: None, History(tmp_path / "history"))
    assert reader.read() == "Hello"
    assert reader.read() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        ("temperature 0.7", ("temperature", 0.7)),
        ("parameter temperature 0.7", ("temperature", 0.7)),
        ("parameter num_predict 20", ("max_new_tokens", 20)),
        ("max-new-tokens off", ("max_new_tokens", None)),
        ("repeat_penalty 1.1", ("repetition_penalty", 1.1)),
        ("seed 7", ("seed", 7)),
        ('stop "User:" "\\n"', ("stop", ("User:", "\n"))),
        ("stop off", ("stop", ())),
        ('system "Be brief."', ("system", "Be brief.")),
        ("system Be brief.", ("system", "Be brief.")),
        ("quiet", ("quiet", None)),
    ],
)
def test_settings_by_the_names_that_people_know(argument: str, setting: tuple[str, object]) -> None:
    assert parse_setting(argument) == setting


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "there are temperature, top_k"),
        ("wordwrap", "/set wordwrap: there are"),
        ("temperature", "needs a value: /set temperature 0.7"),
        ("temperature warm", "/set temperature warm: give a value such as 0.7"),
        ("max_new_tokens 0", "give a value such as 200"),
        ('stop "User:', "give a value such as"),
    ],
)
def test_settings_that_do_not_exist(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_setting(argument)


def test_settings_take_effect_and_are_shown(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "/set temperature 0", "/set max_new_tokens 3", "Hello", "/stats", "/set top_p 7",
        "/show parameters", "/set system Be brief.", "/show system", "/show", "/show template",
        "/show licence", "/regen", "/clear", "/?", "/bye",
    )  # fmt: skip
    outcome = typed_at_a_terminal(awq_edge_command, monkeypatch, tiny_chat_bundle, *lines)
    assert outcome.code == 0
    assert "3 tokens in" in outcome.err  # /stats
    assert "top_p is 7.0; it must be above 0, at most 1" in outcome.err
    assert "max_new_tokens      3\n" in outcome.err
    assert "Be brief." in outcome.err
    assert "tiny-chat" in outcome.err and "{%" in outcome.err
    assert "/show licence: there are info, parameters, system, template" in outcome.err
    assert outcome.out.count("\n") >= 2  # the answer, and once more
    assert "(also /reset)" in outcome.err


def test_regenerate_without_a_message(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = typed_at_a_terminal(awq_edge_command, monkeypatch, tiny_chat_bundle, "/regen")
    assert "there is no message yet" in outcome.err


def test_stop_texts_end_answers(
    awq_edge_command: Command, tiny_chat_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (answer,) = answers(tiny_chat_bundle, ["Hello"])
    stop = answer[len(answer) // 2 :][:2]
    outcome = piped(
        awq_edge_command, monkeypatch, b"Hello\n", tiny_chat_bundle, "--stop", stop,
        "--temperature", "0",
    )  # fmt: skip
    assert outcome.out == answer[: answer.index(stop)] + "\n"
