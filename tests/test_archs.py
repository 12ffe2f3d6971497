"""Architectures: found by listing the folder, sizes equal to transformers' own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import awq_edge.archs
from awq_edge.archs import architectures, decoder_from_config
from awq_edge.errors import ModelError

FOLDER = Path(awq_edge.archs.__file__).parent
NO_ARCHITECTURES = {"__init__", "base", "config"}
MODEL_TYPES = sorted({path.stem for path in FOLDER.glob("*.py")} - NO_ARCHITECTURES)
SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 72,
    "max_position_embeddings": 256,
}


def test_every_file_of_the_folder_is_registered() -> None:
    assert sorted(architectures()) == MODEL_TYPES


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_weight_names_and_shapes_equal_transformers(model_type: str, tied: bool) -> None:
    torch = pytest.importorskip("torch", reason="host extra")
    from transformers import AutoConfig, AutoModelForCausalLM

    flags = {"attention_bias": True, "mlp_bias": True} if model_type == "llama" else {}
    config = AutoConfig.for_model(model_type, **SIZES, **flags, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if tied:
        del expected["lm_head.weight"]
    assert decoder_from_config(config.to_dict()).weight_shapes() == expected


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_scale_groups_cover_every_linear_once(model_type: str) -> None:
    decoder = decoder_from_config({"model_type": model_type, **SIZES})
    grouped = [name for group in decoder.scale_groups() for name in group.linears]
    assert sorted(grouped) == sorted(linear.name for linear in decoder.linears())
    names = {linear.name for linear in decoder.linears()} | set(decoder.norms())
    assert all(group.previous in names for group in decoder.scale_groups())


def test_windows_follow_the_model() -> None:
    def windows(model_type: str, **extra: Any) -> tuple[int | None, ...]:
        return decoder_from_config({"model_type": model_type, **SIZES, **extra}).windows

    assert windows("llama", sliding_window=8) == (None,) * 3
    assert windows("mistral", sliding_window=8) == (8,) * 3
    assert windows("mistral", sliding_window=None) == (None,) * 3
    assert windows("qwen2", sliding_window=8, use_sliding_window=False) == (None,) * 3
    switched_on = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
    assert windows("qwen2", **switched_on) == (None, None, 8)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows("qwen3", sliding_window=8, layer_types=kinds) == (8, None, 8)
    with pytest.raises(ModelError, match="layer_types has 1 entries for 3 layers"):
        windows("qwen3", sliding_window=8, layer_types=["full_attention"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "model_type 'gpt_neox' is not supported; supported: llama,"),
        ({"hidden_size": None}, "'hidden_size' must be a positive integer, found None"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported for llama"),
        ({"vocab_size": True}, "'vocab_size' must be a positive integer, found True"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        decoder_from_config({"model_type": "llama", **SIZES, **change})
