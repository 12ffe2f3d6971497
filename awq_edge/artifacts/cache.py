"""Folders in which this tool keeps files that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """$AWQ_EDGE_CACHE, or `awq-edge` in the user's cache folder. It need not exist."""
    explicit = os.environ.get("AWQ_EDGE_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "awq-edge"
