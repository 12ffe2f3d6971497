"""Permuted models compute the same function of weights that lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from awq_edge.errors import ModelError
from experiments.permuted import permute_channels
from tests.quantizer.conftest import build_model, save_model

# float32 sums in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
PLAIN = {"attention_bias": False, "mlp_bias": False}


def logits(path: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(3, 90)[None]).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_the_function_stays(model_type: str, tied: bool, tmp_path: Path) -> None:
    """With grouped-query attention, norms of heads, and norms behind attention and MLP."""
    source = save_model(
        build_model(model_type, **PLAIN, tie_word_embeddings=tied), tmp_path / "model"
    )
    out = permute_channels(source, tmp_path / "out")
    torch.testing.assert_close(logits(out), logits(source), **TOLERANCE)
    before, after = (load_file(path / "model.safetensors") for path in (source, out))
    for name, tensor in before.items():
        assert torch.equal(after[name].flatten().sort()[0], tensor.flatten().sort()[0]), name
        # Of no old group all values are together; o_proj's heads are as small as a group here.
        if name.endswith("_proj.weight") and "o_proj" not in name:
            old = set(tensor[0, :32].tolist())
            new = [set(group.tolist()) for group in after[name].reshape(-1, 32)]
            assert max(len(old & group) for group in new) < 32, name


def test_a_seed_gives_one_order(tmp_path: Path) -> None:
    source = save_model(build_model("llama", **PLAIN), tmp_path / "model")
    outs = [
        permute_channels(source, tmp_path / f"out{index}", seed)
        for index, seed in enumerate((1, 1, 2))
    ]
    first, same, other = (load_file(out / "model.safetensors") for out in outs)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize("model_type", ["llama", "opt", "mixtral"])
def test_what_has_no_known_order_is_refused(model_type: str, tmp_path: Path) -> None:
    """Biases, learned positions, experts."""
    source = save_model(build_model(model_type), tmp_path / "model")
    with pytest.raises(ModelError, match="no order of channels is known for "):
        permute_channels(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
