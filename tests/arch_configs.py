"""Configurations of tiny models, one per architecture: what differs from the sizes that all share.

An architecture that is not listed takes the sizes as they are.
"""

from __future__ import annotations

from typing import Any

_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4}
_GEMMA = {"query_pre_attn_scalar": 24, "sliding_window": 16, "pad_token_id": 0}


def tiny_config(model_type: str, sizes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Arguments of AutoConfig.for_model. sizes: under Llama's names."""
    config = dict(sizes)
    if model_type == "opt":
        # No grouped-query attention, no head size of its own, and other names.
        config["ffn_dim"] = config.pop("intermediate_size")
        for key in ("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"):
            config.pop(key, None)
    return config | _differences(model_type) | changes


def _differences(model_type: str) -> dict[str, Any]:
    return {
        "gemma2": {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        # Layers with a window, whose rotation is another one, and layers without. Scores are kept
        # small: attention that is one-hot with random weights makes chaos of any rounding.
        "gemma3_text": {
            **_GEMMA,
            "query_pre_attn_scalar": 500,
            "layer_types": None,
            "sliding_window_pattern": 2,
        },
        "mixtral": _EXPERTS,
        "phi3": {"pad_token_id": 0, "partial_rotary_factor": 0.5},
        # Experts in every other layer.
        "qwen3_moe": {**_EXPERTS, "moe_intermediate_size": 64, "decoder_sparse_step": 2},
    }.get(model_type, {})
