"""The road as commands, for architectures that are built otherwise than Llama."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_models import TEXT, save_tokenizer

from .conftest import Command

SIZES = {"vocab_size": 320, "max_position_embeddings": 128, "num_hidden_layers": 2}


@pytest.mark.parametrize("model_type", ["gemma3_text", "granite", "qwen3_moe"])
def test_quantize_export_run_eval(
    model_type: str, awq_edge_command: Command, tmp_path: Path
) -> None:
    """The bundle's perplexity is that of the checkpoint in transformers."""
    from tests.exporter.models import save_random_model

    model, checkpoint, bundle = (tmp_path / name for name in ("model", "checkpoint", "bundle"))
    save_tokenizer(save_random_model(model, model_type, **SIZES))
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")

    def command(*arguments: object) -> str:
        outcome = awq_edge_command(*arguments)
        assert outcome.code == 0, outcome
        return outcome.out

    calibration = ("--calibration", text, "--samples", 4, "--length", 32, "--group-size", 32)
    command("quantize", model, "--out", checkpoint, "--recipe", "cpu", *calibration)
    flags = ("--recipe", "cpu", "--accuracy-level", 0, "--lm-head-bits", 16)
    command("export", checkpoint, "--out", bundle, *flags)
    report = json.loads(
        command("run", bundle, "--max-new-tokens", 4, "--ignore-eos", "--json", "-")
    )
    assert report["result"]["generated_tokens"] == 4
    windows = ("--window", 64, "--stride", 32, "--max-tokens", 150)
    found = [
        json.loads(command("eval", "perplexity", target, "--text", text, *windows, "--json", "-"))
        for target in (checkpoint, bundle)
    ]
    assert found[0]["perplexity"] == pytest.approx(found[1]["perplexity"], rel=1e-3)
