"""Rotary tables against transformers' own initialisation, for every kind we support."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from awq_edge.archs import decoder_from_config
from awq_edge.errors import ModelError
from awq_edge.rope import rope_tables

torch = pytest.importorskip("torch", reason="host extra")

# Both sides compute float32 cosines of float32 angles up to 2,000 rad; one ulp there is 1.2e-4 rad.
COSINE_TOLERANCE = 2e-4

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    "yarn-untruncated": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 64,
        "truncate": False,
        "attention_factor": 1.25,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_equal_transformers(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    arguments = {key: value for key, value in BASE.items() if key != "model_type"}
    config = LlamaConfig(**arguments, rope_parameters=dict(SCALINGS[name]))
    positions = torch.arange(2000)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    half = cos.shape[-1] // 2

    decoder = decoder_from_config(config.to_dict())
    ours_cos, ours_sin = rope_tables(decoder.rope, 2000)

    assert ours_cos.dtype == np.float32
    np.testing.assert_allclose(ours_cos, cos[0, :, :half].numpy(), atol=COSINE_TOLERANCE, rtol=0)
    np.testing.assert_allclose(ours_sin, sin[0, :, :half].numpy(), atol=COSINE_TOLERANCE, rtol=0)


def test_config_of_transformers_4_means_the_same() -> None:
    new = BASE | {"rope_parameters": SCALINGS["llama3"]}
    scaling = {k: v for k, v in SCALINGS["llama3"].items() if k != "rope_theta"}
    old = BASE | {"rope_theta": 500000.0, "rope_scaling": scaling}
    assert decoder_from_config(new).rope == decoder_from_config(old).rope


def test_unknown_kind_and_missing_parameter_are_named() -> None:
    with pytest.raises(ModelError, match="rope type 'spiral' is not supported"):
        decoder_from_config(BASE | {"rope_parameters": {"rope_type": "spiral"}})
    decoder = decoder_from_config(BASE | {"rope_parameters": {"rope_type": "linear"}})
    with pytest.raises(ModelError, match="'linear' needs 'factor'"):
        rope_tables(decoder.rope, 4)
