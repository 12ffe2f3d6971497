"""Fixtures of the runtime tests."""

from __future__ import annotations

from pathlib import Path

import pytest

STORIES = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260k"


@pytest.fixture(scope="session")
def stories() -> Path:
    """The public stories260k model, where a folder `shared` lies beside the repository."""
    if not STORIES.is_dir():
        pytest.skip(reason=f"{STORIES} is not there")
    return STORIES
