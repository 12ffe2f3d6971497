"""What `awq-edge quantize` says at its end."""

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


def test_inputs_of_experts_without_a_token_are_told(
    experts: Path, tmp_path: Path, awq_edge_command: Command
) -> None:
    options = ("--group-size", "32", "--samples", "1", "--length", "4")
    outcome = awq_edge_command("quantize", experts, "--out", tmp_path / "out", *options)
    assert outcome.code == 0
    assert "inputs of experts saw no calibration token" in outcome.out


def test_a_model_that_can_be_exported_says_so(
    tiny_llama: Path, tmp_path: Path, awq_edge_command: Command
) -> None:
    out = tmp_path / "out"
    outcome = awq_edge_command(
        "quantize", tiny_llama, "--out", out, "--method", "rtn", "--group-size", "32"
    )
    assert outcome.out.splitlines()[-1] == f"next: awq-edge export {out} --out BUNDLE"
