"""docs/how-awq-works.md: every code block runs, in order, and prints what stands there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-awq-works.md"


def check(text: str) -> doctest.TestResults:
    """Run the examples of all fenced Python blocks as one session."""
    pytest.importorskip("torch", reason="needs the [host] extra")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, PAGE.name, str(PAGE), 0)
    return doctest.DocTestRunner(verbose=False).run(test)


def test_every_number_is_what_the_library_computes() -> None:
    result = check(PAGE.read_text(encoding="utf-8"))
    assert result.attempted > 20
    assert result.failed == 0


def test_a_wrong_number_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("13.81 3.11 1.09") == 1
    assert check(text.replace("13.81 3.11 1.09", "13.81 3.11 1.08")).failed == 1
    assert "13.81 3.11 1.08" in capsys.readouterr().out
