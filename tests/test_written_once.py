"""Habits of the whole repository: short files, one base class of what is written and read back."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import awq_edge

PACKAGE = Path(awq_edge.__file__).parent
ROOT = PACKAGE.parent
CODE = (".py", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp")
MOST_LINES = 400


def test_no_file_is_long() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    files = [ROOT / name for name in listed if name.endswith(CODE)] or [*PACKAGE.rglob("*.py")]
    lengths = {file: len(file.read_bytes().splitlines()) for file in files if file.is_file()}
    assert len(lengths) > 300
    long = [f"{f.relative_to(ROOT)}: {n}" for f, n in lengths.items() if n > MOST_LINES]
    assert not long, f"more than {MOST_LINES} lines; split them by subject: {long}"


def test_what_is_written_has_one_base_class() -> None:
    """pydantic's own class, whose settings would be repeated, is derived from in one place."""
    bases = [
        (file.relative_to(PACKAGE).as_posix(), node.name)
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("BaseModel") for base in node.bases)
    ]
    assert bases == [("artifacts/schema.py", "Record")]


def test_constants_that_several_parts_share_are_assigned_once() -> None:
    shared = ("LAYOUT_VERSION", "ABI_VERSION", "DOMAIN", "RECIPE_FILE", "LOGITS_ROWS", "MANIFEST")
    places = {
        name: [
            file.relative_to(PACKAGE).as_posix()
            for file in PACKAGE.rglob("*.py")
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign) and any(ast.unparse(t) == name for t in node.targets)
        ]
        for name in shared
    }
    assert {name: len(found) for name, found in places.items()} == dict.fromkeys(shared, 1), places


def test_the_systems_memory_has_one_reader() -> None:
    named = '"proc/meminfo"'
    readers = [
        file.name for file in PACKAGE.rglob("*.py") if named in file.read_text(encoding="utf-8")
    ]
    assert readers == ["system_memory.py"]
