"""docs/troubleshooting.md quotes messages that the program has, and links to pages that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)
_GAP = "\0"


def _text(node: ast.expr) -> str:
    """A string expression with `_GAP` for what is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else _GAP
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return _GAP


def messages() -> list[str]:
    """Every string of the package, joined as it is written, without line breaks."""
    found = []
    for path in (ROOT / "awq_edge").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
                found.append(" ".join(_text(node).split()))
    return found


MESSAGES = messages()


def quoted(heading: str) -> bool:
    """Whether the pieces between the dots follow each other in one message."""
    pieces = [piece.strip() for piece in heading.split("…")]
    pattern = ".*".join(re.escape(piece) for piece in pieces if piece)
    return any(re.search(pattern, message) for message in MESSAGES)


@pytest.mark.parametrize("heading", HEADINGS)
def test_heading_is_a_message_of_the_program(heading: str) -> None:
    assert quoted(heading)


def test_headings_that_no_message_has_are_found() -> None:
    assert len(HEADINGS) > 15
    assert not quoted("the build needs roughly …")
    assert not quoted("… has … bytes, its recipe says …")


def test_links_lead_to_pages() -> None:
    for name in ("troubleshooting", "build", "jetson", "rtx-laptop"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / "docs" / target).exists(), f"{name}.md: {target}"
