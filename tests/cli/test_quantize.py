"""`awq-edge quantize` and `export` on a model whose graph is not there yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Command

pytest.importorskip("transformers", reason="needs the [host] extra")


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """A tiny model with more experts than a few tokens reach."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.arch_configs import tiny_config
    from tests.tiny_models import save_tokenizer

    path = save_tokenizer(tmp_path / "model", merges=False)
    sizes = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    settings = tiny_config("mixtral", sizes, num_local_experts=16, num_experts=16)
    config = AutoConfig.for_model("mixtral", **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def test_the_next_step_is_one_that_works(
    experts: Path, tmp_path: Path, awq_edge_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a model without a graph, as the next architecture will be at first."""
    for module in ("supported", "bundle"):
        monkeypatch.setattr(f"awq_edge.exporter.{module}.unsupported", lambda decoder: "experts")
    out = tmp_path / "out"
    options = ("--group-size", "32", "--samples", "1", "--length", "4")
    outcome = awq_edge_command("quantize", experts, "--out", out, *options)
    assert outcome.code == 0
    assert "inputs of experts saw no calibration token" in outcome.out
    *_, last = outcome.out.splitlines()
    assert last == f"next: awq-edge eval perplexity {out} --text FILE"
    line = awq_edge_command("export", out, "--out", tmp_path / "bundle").refused()
    assert "the graph does not have yet what its model_type 'mixtral' needs: experts; " in line
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_can_be_exported_says_so(
    tiny_llama: Path, tmp_path: Path, awq_edge_command: Command
) -> None:
    out = tmp_path / "out"
    outcome = awq_edge_command(
        "quantize", tiny_llama, "--out", out, "--method", "rtn", "--group-size", "32"
    )
    assert outcome.out.splitlines()[-1] == f"next: awq-edge export {out} --out BUNDLE"
