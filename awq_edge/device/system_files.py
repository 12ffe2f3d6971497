"""Small files of the system (/proc, /sys, /etc): read whole, and never an error."""

from __future__ import annotations

import string
from pathlib import Path


def read_text(path: Path) -> str | None:
    """A file's text without white space and NULs around it; None where it cannot be read.

    A driver answers a read with an error of its own (EIO, ENODATA, EAGAIN) when its chip is asleep.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip(string.whitespace + "\0")


def read_int(path: Path) -> int | None:
    """The whole number in a file; None where there is none."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
