"""Rotary tables against transformers' own initialisation, for every kind we support."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from awq_edge.errors import ModelError
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.rope import rope_tables

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


@pytest.mark.parametrize("length", [32, 600])
@pytest.mark.parametrize("extra", [{}, {"attention_factor": 1.3}, {"factor": 3.0}])
def test_longrope_equals_transformers(length: int, extra: dict[str, float]) -> None:
    """Within what the model was first trained with the short factors hold, beyond the long ones."""
    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    arguments = {key: value for key, value in BASE.items() if key != "model_type"}
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0 + 0.1 * pair for pair in range(12)],
        "long_factor": [1.5 + pair for pair in range(12)],
        **extra,
    }
    config = Phi3Config(
        **arguments,
        rope_parameters=parameters,
        original_max_position_embeddings=512,
        pad_token_id=0,
    )
    cos, sin = Phi3RotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    ours_cos, ours_sin = rope_tables(decoder_from_config(config.to_dict()).rope, length)
    assert ours_cos.shape == (length, 12) and cos.shape[-1] == 24
    np.testing.assert_allclose(ours_cos, cos[0, :, :12].numpy(), atol=COSINE_TOLERANCE, rtol=0)
    np.testing.assert_allclose(ours_sin, sin[0, :, :12].numpy(), atol=COSINE_TOLERANCE, rtol=0)


def test_layers_with_a_window_have_a_rotation_of_their_own() -> None:
    """Gemma 3, as transformers 5 writes it and as its files on the hub say it."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    shared = BASE | {"model_type": "gemma3_text", "head_dim": 32}
    old = shared | {
        "rope_theta": 500000.0,
        "rope_local_base_freq": 20000.0,
        "rope_scaling": scaling,
    }
    new = shared | {
        "rope_parameters": {
            "full_attention": {**scaling, "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
        }
    }
    for config in (old, new):
        decoder = decoder_from_config(config)
        assert (decoder.rope.kind, decoder.rope.theta) == ("linear", 500000.0)
        assert (decoder.local_rope.kind, decoder.local_rope.theta) == ("default", 20000.0)
    usual = decoder_from_config(shared)
    assert (usual.rope.theta, usual.local_rope.theta) == (1000000.0, 10000.0)


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
