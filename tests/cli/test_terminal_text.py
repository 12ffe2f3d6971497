"""What comes from outside commands no terminal."""

from __future__ import annotations

import io
import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_edge.cli.output import AnswerWriter, open_console, say
from awq_edge.terminal_text import escaped_json, one_line, printable

TITLE = "a\x1b]0;OWNED\x07"
HOSTILE = [
    TITLE,
    "\x9b2J",  # CSI as one character
    "\x1bP+q\x1b\\",
    "over\rwritten",
    "back\b\b\b\b",
    "\u202egnp.exe",
    "\u2066isolated",
    "half \udcff",
    "\x7f",
]


def is_obeyed(text: str) -> bool:
    """By Unicode's own tables, not by the module's list."""
    return any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI")
        or unicodedata.bidirectional(c) == "PDI"
        for c in text
        if c not in "\n\t"
    )


@given(st.text(st.characters(codec=None, categories=None)))
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert not is_obeyed(printable(text))
    line = one_line(text)
    assert not is_obeyed(line) and "\t" not in line
    assert len(line.splitlines()) <= 1


@given(st.text(st.characters(categories=("L", "M", "N", "P", "S"))))
def test_letters_of_every_script_are_exact(text: str) -> None:
    assert printable(text) == text == one_line(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_was_there_is_shown(text: str) -> None:
    assert printable(text) != text
    assert "\\" in printable(text)


def test_what_is_no_danger_stays() -> None:
    text = "  two  spaces\n\ttab \U0001f469\u200d\U0001f4bb \u0646\u0645\u06cc\u200c\u062f\n"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"
    assert one_line("  indented") == "  indented"
    assert one_line("\n  an indent \r\n\t and more\x0b\n") == "an indent and more"
    assert printable(TITLE) == "a\\x1b]0;OWNED\\x07"
    assert printable("\u202ex") == "\\u202ex"


@pytest.mark.parametrize("text", [" " * 10**6 + "x", "\n " * 10**6, "\r" * 10**6 + "x"])
def test_long_runs_take_no_long_time(text: str) -> None:
    """Quadratic, each of these would run for hours; nothing is measured but that they end."""
    assert one_line(text) is not None and printable(text) is not None


@given(st.dictionaries(st.text(), st.text()))
def test_json_means_the_same(value: dict[str, str]) -> None:
    plain = json.dumps(value, ensure_ascii=False, indent=1)
    shown = escaped_json(plain)
    assert json.loads(shown) == value
    assert not is_obeyed(shown)


def test_a_console_prints_no_control_and_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table
    from rich.text import Text

    from awq_edge.cli.progress import block_progress

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    console = open_console(width=120)
    table = Table(TITLE, title=TITLE, caption="[red]x[/red]")
    table.add_row(f"{TITLE}\nerror: a row of somebody's own [bold]")
    table.add_row(Text(TITLE))
    console.print(table)
    for text in HOSTILE:
        console.print(text, soft_wrap=True)
        say(text)
    assert not is_obeyed(out.getvalue())
    assert "[red]x[/red]" in out.getvalue() and "[bold]" in out.getvalue()
    assert not any(line.startswith("error:") for line in out.getvalue().splitlines())
    with block_progress(console) as observe:
        observe(1, 2, f"[/]{TITLE}")


def test_an_answer_is_exact_in_a_file_and_safe_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file, terminal = io.StringIO(), Terminal()
    text = f"{TITLE}a\r\nb\rc\r"
    for stream in (file, terminal):
        writer = AnswerWriter(stream)
        for character in text:  # a line's two ends come apart
            writer.write(character)
        writer.write("\n")
    assert file.getvalue() == text + "\n"
    assert terminal.getvalue() == printable(f"{TITLE}a\nb\rc\n")
