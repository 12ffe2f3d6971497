"""Rotary settings of config.json in every spelling: read as transformers reads them, or refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from awq_edge.errors import ModelError
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.rope import rope_tables

torch = pytest.importorskip("torch", reason="host extra")

TOLERANCE = 2e-4  # as in test_rope.py
POSITIONS = 300
HEAD_SIZE, PAIRS = 32, 16
BASE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_SIZE,
    "vocab_size": 64,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
FACTORS = {
    "short_factor": [1.0 + 0.1 * pair for pair in range(PAIRS)],
    "long_factor": [1.5 + pair for pair in range(PAIRS)],
}
HALF = {key: values[: PAIRS // 2] for key, values in FACTORS.items()}
ORIGINAL = "original_max_position_embeddings"

# What config.json says of rotations, beside BASE.
SPELLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("llama", {}),
    "theta": ("llama", {"rope_theta": 500000.0}),
    "theta inside": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}}),
    "theta inside wins": (
        "llama",
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 3e5}},
    ),
    "old key": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 2e4}),
    "both names of the type": (
        "llama",
        {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2.0}},
    ),
    "both spellings, old wins": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}, "rope_scaling": LINEAR},
    ),
    "both spellings, old is empty": (
        "llama",
        {"rope_parameters": {**LINEAR, "rope_theta": 5e4}, "rope_scaling": {}},
    ),
    "both spellings, old is null": (
        "qwen2",
        {"rope_scaling": None, "rope_parameters": {**LINEAR, "rope_theta": 5e4}},
    ),
    "partial is ignored": ("llama", {"partial_rotary_factor": 0.5}),
    "partial inside is ignored": (
        "mistral",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                             "partial_rotary_factor": 0.5}},
    ),
    "partial null": ("llama", {"partial_rotary_factor": None}),
    "partial of another kind": ("llama", {"partial_rotary_factor": 0.5, "rope_scaling": LINEAR}),
    "partial of whole heads": ("llama", {"partial_rotary_factor": 1.0, "rope_scaling": LINEAR}),
    "partial phi3": ("phi3", {"partial_rotary_factor": 0.75}),
    "partial phi3 inside": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                             "partial_rotary_factor": 0.5}},
    ),
    "partial phi3, inside wins": (
        "phi3",
        {"partial_rotary_factor": 0.75,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                             "partial_rotary_factor": 0.5}},
    ),
    "llama3": ("llama", {"rope_scaling": {**LLAMA3, ORIGINAL: 256}, "rope_theta": 5e5}),
    "llama3, outer original": (
        "llama", {"rope_scaling": {**LLAMA3, ORIGINAL: 256}, ORIGINAL: 512}
    ),
    "llama3 without original": ("llama", {"rope_scaling": LLAMA3}),
    "yarn": ("qwen3", {"rope_scaling": YARN}),
    "yarn, outer original": ("qwen2", {"rope_scaling": YARN, ORIGINAL: 512}),
    "yarn without original": ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    "yarn, factor null": ("qwen2", {"rope_scaling": {**YARN, "factor": None}}),
    "yarn, not truncated": ("qwen2", {"rope_scaling": {**YARN, "truncate": False}}),
    "yarn, truncate null": ("qwen2", {"rope_scaling": {**YARN, "truncate": None}}),
    "yarn, one mscale": ("qwen2", {"rope_scaling": {**YARN, "mscale": 0.7}}),
    "yarn, slow above fast": (
        "qwen2", {"rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 8.0}}
    ),
    "longrope llama": ("llama", {"rope_scaling": {"rope_type": "longrope", **FACTORS,
                                                  ORIGINAL: 256}}),
    "longrope llama, factor": ("llama", {"rope_scaling": {"rope_type": "longrope", **FACTORS,
                                                          "factor": 3.0}}),
    "longrope phi3": ("phi3", {"rope_scaling": {"type": "longrope", **FACTORS}, ORIGINAL: 256}),
    "longrope phi3, no outer": ("phi3", {"rope_scaling": {"type": "longrope", **FACTORS,
                                                          ORIGINAL: 256}}),
    "longrope phi3, partial": (
        "phi3",
        {"rope_scaling": {"type": "longrope", **HALF}, ORIGINAL: 256, "partial_rotary_factor": 0.5},
    ),
    "su phi3": ("phi3", {"rope_scaling": {"type": "su", **FACTORS, ORIGINAL: 256}}),
    "yarn phi3 is longrope": (
        "phi3", {"rope_scaling": {"type": "yarn", **FACTORS}, ORIGINAL: 256}
    ),
    "yarn phi3, factor": (
        "phi3", {"rope_scaling": {"type": "yarn", "factor": 4.0, **FACTORS}, ORIGINAL: 256}
    ),
    "yarn phi3 without factors": ("phi3", {"rope_scaling": YARN}),
    "linear phi3": ("phi3", {"rope_scaling": LINEAR}),
    "llama3 phi3": ("phi3", {"rope_scaling": {**LLAMA3, ORIGINAL: 256}}),
    "su llama": ("llama", {"rope_scaling": {"type": "su", **FACTORS}}),
    "nested in a flat one": (
        "qwen3",
        {"layer_types": ["full_attention"] * 2,
         "rope_parameters": {"full_attention": {**LINEAR, "rope_theta": 1e4}}},
    ),
    "mixtral's own theta": ("mixtral", {}),
    "gemma3 old": (
        "gemma3_text",
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": LINEAR},
    ),
    "gemma3 new": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {**LINEAR, "rope_theta": 5e5},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}},
    ),
    "gemma3 both": (
        "gemma3_text",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0},
         "rope_parameters": {"full_attention": {**LINEAR, "rope_theta": 5e5},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}},
    ),
    "gemma3 without the local one": (
        "gemma3_text", {"rope_parameters": {"full_attention": {**LINEAR, "rope_theta": 5e5}}}
    ),
    "gemma3 flat": ("gemma3_text", {"rope_parameters": {**LINEAR, "rope_theta": 5e5}}),
    "gemma3 yarn, outer original": (
        "gemma3_text",
        {ORIGINAL: 512, "rope_parameters": {"full_attention": {**YARN, "truncate": False,
                                                               "rope_theta": 5e5}}},
    ),
    "gemma3 partial": ("gemma3_text", {"partial_rotary_factor": 0.5}),
}  # fmt: skip
REFUSED = {
    "partial of another kind": "rotates whole heads",
    "yarn phi3 without factors": "rope type 'longrope' needs",
    "linear phi3": "rope type 'linear' is not supported for phi3",
    "llama3 phi3": "rope type 'llama3' is not supported for phi3",
    "su llama": "rope type 'su' is not supported for llama",
    "nested in a flat one": "share one rotation",
}
SAID = {
    "partial is ignored": "partial_rotary_factor 0.5 has no effect: llama rotates whole heads",
    "partial inside is ignored": "mistral rotates whole heads",
    "gemma3 partial": "gemma3_text are ignored: partial_rotary_factor",
    "both spellings, old wins": "rope_parameters are overridden by rope_scaling",
    "gemma3 both": "rope_parameters are overridden by rope_scaling",
    "gemma3 flat": "rope_type of rope_parameters have no effect",
    "su phi3": "rope type 'su' is read as longrope",
    "yarn phi3 is longrope": "rope type 'yarn' is read as longrope",
    "yarn phi3, factor": "rope type 'yarn' is read as longrope",
}


def theirs(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """Cosine and sine [POSITIONS, channels] by kind of layer, of transformers' rotary module."""
    from transformers import AutoConfig, AutoModel

    settings = AutoConfig.for_model(model_type, **copy.deepcopy(config))
    with torch.device("meta"):
        model = AutoModel.from_config(settings)
    rotary = type(model.rotary_emb)(settings)  # on the CPU
    x, positions = torch.zeros(1), torch.arange(POSITIONS)[None]
    if model_type != "gemma3_text":
        found = {"full": rotary(x, positions)}
    else:
        kinds = {"full": "full_attention", "local": "sliding_attention"}
        found = {name: rotary(x, positions, kind) for name, kind in kinds.items()}
    half = {name: cos.shape[-1] // 2 for name, (cos, _) in found.items()}
    if model_type != "phi3":  # the others multiply whole heads by it
        assert set(half.values()) == {PAIRS}
    return {
        name: (cos[0, :, : half[name]].numpy(), sin[0, :, : half[name]].numpy())
        for name, (cos, sin) in found.items()
    }


def config_of(name: str) -> tuple[str, dict[str, Any]]:
    model_type, changes = SPELLINGS[name]
    config = {**BASE, **changes}
    if model_type == "gemma3_text":
        config |= {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    return model_type, config


@pytest.mark.parametrize("name", [name for name in SPELLINGS if name not in REFUSED])
def test_tables_are_transformers(name: str) -> None:
    model_type, config = config_of(name)
    wanted = theirs(model_type, config)
    decoder = decoder_from_config({"model_type": model_type, **config})
    ropes = {"full": decoder.rope, "local": decoder.local_rope}
    for kind, (cosine, sine) in wanted.items():
        ours = rope_tables(ropes[kind], POSITIONS)
        assert ours[0].shape == cosine.shape
        np.testing.assert_allclose(ours[0], cosine, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(ours[1], sine, atol=TOLERANCE, rtol=0)
    if name in SAID:
        assert any(SAID[name] in note for note in decoder.notes), decoder.notes
    else:
        assert decoder.notes == ()


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_does_not_compute_is_refused(name: str) -> None:
    model_type, config = config_of(name)
    with pytest.raises(Exception):  # noqa: B017  each fails in a way of its own
        theirs(model_type, config)
    with pytest.raises(ModelError, match=REFUSED[name]):
        decoder_from_config({"model_type": model_type, **config})


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 33},
        {"partial_rotary_factor": 0.3},
        {"head_dim": 30, "partial_rotary_factor": 0.5},
    ],
)
def test_odd_rotations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="channels are rotated in pairs"):
        decoder_from_config({"model_type": "phi3", **BASE, **change})
