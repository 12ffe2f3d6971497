"""A text, and a quantized checkpoint of the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import awq_edge
from tests.tiny_models import TEXT

GROUP_SIZE = 32


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 700 tokens, some of them characters of several bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT + "Thé énd — 你好.\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama`, rounded to nearest in groups of 32; lm_head as it was."""
    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    awq_edge.quantize(tiny_llama, out, awq_edge.load_recipe(method="rtn", group_size=GROUP_SIZE))
    return out
