"""Chat templates on the command line: broken, replaced, told what to do, with thoughts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import Command

BROKEN = "{% for m in messages %}{{ m.content }"
THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<think>{% if enable_thinking is false %}</think>{% endif %}"
    "{% endif %}"
)
SHORT = ("--max-new-tokens", 3, "--threads", 1)


@pytest.fixture
def broken(tiny_chat_bundle: Path, tmp_path: Path) -> Path:
    file = tmp_path / "broken.jinja"
    file.write_text(BROKEN)
    return file


def test_a_broken_template_disturbs_only_what_needs_it(
    awq_edge_command: Command, tiny_chat_bundle: Path, broken: Path
) -> None:
    given = ("--chat-template", broken, *SHORT)
    raw = awq_edge_command("run", tiny_chat_bundle, "--raw", "--prompt", "Hi", *given)
    assert raw.code == 0, raw.err
    line = awq_edge_command("run", tiny_chat_bundle, "--prompt", "Hi", *given).refused()
    assert "line 1" in line and "--raw" in line and "--chat-template" in line


def test_thoughts_go_to_standard_error(
    awq_edge_command: Command, tiny_chat_bundle: Path, tmp_path: Path
) -> None:
    """A random model never closes them: all that it writes are thoughts."""
    file, report = tmp_path / "t.jinja", tmp_path / "report.json"
    file.write_text(THINKING)
    run = ("run", tiny_chat_bundle, "--prompt", "Hi", "--chat-template", file, *SHORT)
    done = awq_edge_command(*run, "--ignore-eos", "--json", report)
    assert done.code == 0, done.err
    result = json.loads(report.read_text())["result"]
    assert result["text"] == "" and result["thoughts"] and result["thought_tokens"] == 3
    assert result["thoughts"] in done.err and result["thoughts"] not in done.out
    assert "3 of them thoughts, and no answer" in " ".join(done.out.split())
    off = ("--chat-template-kwargs", '{"enable_thinking": false}')
    done = awq_edge_command(*run, "--ignore-eos", "--json", report, *off)
    result = json.loads(report.read_text())["result"]
    assert result["text"] and not result["thoughts"]


@pytest.mark.parametrize("value", ["[1]", "{", '{"messages": []}', "NaN"])
def test_variables_that_cannot_be_are_refused(
    awq_edge_command: Command, tiny_chat_bundle: Path, value: str
) -> None:
    run = ("run", tiny_chat_bundle, "--prompt", "Hi", *SHORT)
    assert awq_edge_command(*run, "--chat-template-kwargs", value).refused()


@pytest.mark.parametrize("source", [BROKEN, "nothing of what is said"])
def test_export_warns(
    awq_edge_command: Command, tiny_llama: Path, tmp_path: Path, source: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    (model / "chat_template.jinja").write_text(source)
    done = awq_edge_command("export", model, "--out", tmp_path / "b", "--method", "none")
    assert done.code == 0, done.err
    assert "warning: the chat template" in done.out
