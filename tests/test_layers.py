"""The layers of docs/design.md: nothing imports what stands below it in the list."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import awq_edge

PACKAGE = Path(awq_edge.__file__).parent
DESIGN = PACKAGE.parent / "docs" / "design.md"
# One name; lines of the list may hold several, which are of one layer.
_NAME = re.compile(r"([a-z_]+)/?")


def layers() -> dict[str, int]:
    """Package or module of awq_edge -> its line in the list, from the top."""
    text = DESIGN.read_text(encoding="utf-8")
    listed = re.search(r"```\nawq_edge/\n(.*?)```", text, re.DOTALL)
    assert listed is not None
    rank = {}
    for number, line in enumerate(listed[1].splitlines()):
        names = re.split(r"\s{2,}", line.strip())[0]
        rank |= {name: number for name in _NAME.findall(names)}
    return rank


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """Names of awq_edge that a file imports, anywhere in it, each with its line number."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("awq_edge."):
                yield name.split(".")[1], node.lineno


def own_name(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_package_is_in_the_list() -> None:
    there = {own_name(file) for file in PACKAGE.rglob("*.py")}
    assert there == set(layers())


def test_no_import_runs_upwards() -> None:
    rank = layers()
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line} imports {name}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for name, line in imported(file)
        # `from awq_edge import quantize`: what __init__ hands on
        if rank.get(name, rank["__init__"]) > rank[own_name(file)]
    ]
    assert wrong == []


def test_an_import_upwards_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from awq_edge.cli import main\n", encoding="utf-8")
    assert list(imported(file)) == [("cli", 2)]
    assert layers()["cli"] > layers()["model"]
