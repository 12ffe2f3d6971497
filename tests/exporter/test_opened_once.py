"""Reads of an export: a quantized checkpoint is opened and checked once, one recipe is read."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge._package import DATA
from awq_edge.exporter import bundle
from awq_edge.model import checkpoint, files
from awq_edge.recipe import recipes


@pytest.mark.parametrize("recipe", [None, "cpu"])
def test_a_checkpoint_is_opened_and_checked_once(
    recipe: str | None, llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(llama_checkpoint, tmp_path / "checkpoint")
    shutil.copy(DATA / "demo" / "tokenizer.json", source)
    calls: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    count(files, "read_config")
    count(files, "read_header")
    count(checkpoint.Checkpoint, "_check_names_and_shapes")
    count(bundle, "check_model")
    count(recipes, "read_chain")
    awq_edge.export(source, tmp_path / "bundle", recipe)
    shards = len(list(source.glob("*.safetensors")))
    assert calls == {
        "read_config": 1,
        "read_header": shards,
        "_check_names_and_shapes": 1,
        "check_model": 1,
        "read_chain": 1,
    }
