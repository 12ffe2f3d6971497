"""The folder plugins/, and fixtures of compilers: tests skip where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
HEADER = PLUGINS / "include" / "awq_edge_kernels.h"


def _compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(reason=f"needs {name}")
    return found


@pytest.fixture(scope="session")
def gcc() -> str:
    return _compiler("gcc")


@pytest.fixture(scope="session")
def gxx() -> str:
    return _compiler("g++")
