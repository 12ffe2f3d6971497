"""A made-up /sys: files by path."""

from __future__ import annotations

from pathlib import Path


def write_tree(root: Path, files: dict[str, object]) -> Path:
    """Write each value and a line end to its path below root."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n", encoding="utf-8")
    return root
