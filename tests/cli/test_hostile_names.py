"""Names that would command a terminal, through the commands that print them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import Command
from .test_chat import piped, typed_at_a_terminal
from .test_terminal_text import is_obeyed

TITLE = "a\x1b]0;OWNED\x07\u202e\x9b2J\nerror: [bold]all is well[/bold]"
SHOWN = "a\\x1b]0;OWNED\\x07\\u202e\\x9b2J error: [bold]all is well[/bold]"


@pytest.fixture
def hostile_bundle(tiny_chat_bundle: Path, tmp_path: Path) -> Path:
    """A sound bundle whose manifest has such a text wherever it may have one."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_chat_bundle, bundle)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest |= {"model_name": TITLE, "commit": TITLE, "awq_edge_version": TITLE}
    manifest["source"] = {"model": TITLE, TITLE: TITLE}
    manifest["unquantized"] = {TITLE: TITLE}
    path.write_text(json.dumps(manifest))
    return bundle


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "BUNDLE"),
        ("inspect", "BUNDLE", "--json", "-"),
        ("run", "BUNDLE", "--max-new-tokens", "2", "--threads", "1"),
        ("bench", "BUNDLE", "--prompt", "4", "--generated", "2", "--repeats", "1"),
    ],
)
def test_a_manifest_commands_nothing(
    arguments: tuple[str, ...], awq_edge_command: Command, hostile_bundle: Path
) -> None:
    outcome = awq_edge_command(*(str(hostile_bundle) if a == "BUNDLE" else a for a in arguments))
    report = outcome.out
    if arguments[0] == "run":  # a pipe has the model's own text as it is, of random weights
        report = report.partition("\n\n")[2]
    assert not is_obeyed(report) and not is_obeyed(outcome.err)
    assert not any(line.startswith("error: [bold]") for line in report.splitlines())
    if "--json" in arguments:
        assert json.loads(report)["provenance"]["model_name"] == TITLE
    elif outcome.code == 0:
        assert SHOWN[:20] in report
    else:  # refused, by name
        assert outcome.code == 2 and len(outcome.err.splitlines()) == 1


def test_chat_shows_such_a_name(
    awq_edge_command: Command, hostile_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = typed_at_a_terminal(
        awq_edge_command, monkeypatch, hostile_bundle, "/show", "/set system \x1b[2J",
        "/show system", "/load \x1b]0;OWNED\x07",
    )  # fmt: skip
    assert outcome.code == 0
    assert not is_obeyed(outcome.err.replace("\r\n", "\n"))
    assert "OWNED" in outcome.err and "\\x1b[2J" in outcome.err


def test_a_template_that_refuses_says_it_in_one_line(
    awq_edge_command: Command, tiny_chat_bundle: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('" + TITLE.replace("\n", "\\n") + "') }}")
    outcome = piped(
        awq_edge_command, monkeypatch, b"Hi\n", tiny_chat_bundle, "--chat-template", template
    )
    line = outcome.refused()
    assert not is_obeyed(line) and "OWNED" in line


@pytest.mark.parametrize(
    "command", [("inspect",), ("run",), ("chat",), ("fit",), ("export", "--out", "x"),
                ("quantize", "--out", "x"), ("eval", "perplexity", "--text"), ("recipes", "show"),
                ("bench",), ("bench", "compare", "x"), ("build",), ("serve", "--port", "0")],
)  # fmt: skip
def test_a_path_commands_nothing(
    command: tuple[str, ...], awq_edge_command: Command, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    outcome = awq_edge_command(*command, f"{tmp_path}/\x1b]0;OWNED\x07\n\u202e")
    assert outcome.code == 2 and outcome.out == ""
    assert not is_obeyed(outcome.err)
