"""Models that llama.cpp would compute otherwise are refused, and what a file lacks is noted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("gguf", reason="needs the [gguf] extra")

from awq_edge.errors import ModelError
from awq_edge.exporter.gguf.checks import check_decoder, llama_cpp_of, longest_context
from awq_edge.model.checkpoint import Checkpoint
from tests.exporter.models import tiny_decoder

from .conftest import SaveModel

# model_type, what differs of its configuration, words of the refusal.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "longrope in Mistral": (
        "mistral",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "factor": 2.0,
                "original_max_position_embeddings": 48,
                "short_factor": [1.0] * 16,
                "long_factor": [2.0] * 16,
            }
        },
        "has no rotation of kind 'longrope'",
    ),
    "yarn's attention factor": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 2.0,
                "attention_factor": 1.5,
                "original_max_position_embeddings": 48,
            }
        },
        "has no attention_factor of yarn",
    ),
    "bias of o_proj": ("qwen3", {"attention_bias": True}, "has no bias of self_attn.o_proj"),
    "wide heads": (
        "qwen2",
        {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2},
        "has heads of hidden_size / num_attention_heads channels, and these are of 32",
    ),
    "Gemma without caps": (
        "gemma2",
        {"attn_logit_softcapping": None},
        "has a soft cap of scores, and this model has none",
    ),
    "another scale": (
        "gemma2",
        {"query_pre_attn_scalar": 64},
        "multiplies attention scores by 0.17678, and this model by 0.125",
    ),
    "windows elsewhere": (
        "gemma3_text",
        {"sliding_window_pattern": 3},
        "a window in all layers but every 6th, and this model in others",
    ),
    "untied Gemma": (
        "gemma2",
        {"tie_word_embeddings": False},
        "takes the embedding as output layer, and this model has another one",
    ),
    "layers without experts": (
        "qwen3_moe",
        {"decoder_sparse_step": 2},
        "has experts in every layer",
    ),
    "shares of experts": (
        "qwen3_moe",
        {"norm_topk_prob": False},
        "makes the experts' shares sum to 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_llama_cpp_computes_otherwise(case: str, save_model: SaveModel) -> None:
    model_type, config, reason = REFUSED[case]
    checkpoint = Checkpoint.open(save_model(model_type, **config))
    with pytest.raises(ModelError, match=r"llama\.cpp's") as caught:
        check_decoder(checkpoint)
    assert reason in str(caught.value)


def test_opt_is_refused_by_name() -> None:
    with pytest.raises(
        ModelError, match="no architecture for model_type 'opt'; --gguf writes gemma2"
    ):
        llama_cpp_of(tiny_decoder("opt"))


def test_a_window_limits_the_context_where_llama_cpp_has_none(save_model: SaveModel) -> None:
    checkpoint = Checkpoint.open(save_model("mistral", sliding_window=24))
    decoder = checkpoint.decoder
    assert longest_context(decoder, llama_cpp_of(decoder)) == 24
    assert check_decoder(checkpoint)[0].startswith("context: 24 tokens")


def test_gemma_keeps_its_context_and_its_window(save_model: SaveModel) -> None:
    checkpoint = Checkpoint.open(save_model("gemma3_text"))
    decoder = checkpoint.decoder
    assert longest_context(decoder, llama_cpp_of(decoder)) == decoder.max_positions
    assert check_decoder(checkpoint) == ()


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl"])
def test_pictures_are_named(model_type: str, save_model: SaveModel) -> None:
    notes = check_decoder(Checkpoint.open(save_model(model_type)))
    assert any("mmproj" in note for note in notes)


def test_gemma_of_46_layers_has_another_scale() -> None:
    """Gemma 2 27B: heads of 128 channels, and scores of (hidden_size / num_heads) ** -0.5."""
    from awq_edge.exporter.gguf.checks import _attention

    decoder = tiny_decoder("gemma2")
    wide = replace(
        decoder,
        num_layers=46,
        windows=tuple(16 if layer % 2 == 0 else None for layer in range(46)),
        hidden_size=4608,
        num_heads=32,
        attention_scale=144**-0.5,
    )
    assert list(_attention(wide, llama_cpp_of(wide))) == []
    narrow = replace(wide, attention_scale=decoder.head_size**-0.5)
    assert "multiplies attention scores" in next(_attention(narrow, llama_cpp_of(narrow)))
