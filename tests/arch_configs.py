"""Configurations of tiny models, one per architecture: what differs from the sizes that all share.

An architecture that is not listed takes the sizes as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from awq_edge.model.archs import architectures

if TYPE_CHECKING:
    from awq_edge.model.archs import Decoder

_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4}
# Vision-language models, with the usual model_type of their text_config.
_TEXTS = {"llava": "llama", "qwen2_vl": "qwen2_vl_text"}
IMAGE_TOKEN, VIDEO_TOKEN, BEFORE_IMAGE, AFTER_IMAGE = 5, 6, 7, 8
_OUTER_KEYS = ("tie_word_embeddings", "vision_config", "vision_feature_select_strategy")
_LLAVA: dict[str, Any] = {
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
        "projection_dim": 32,
    },
    "image_token_index": IMAGE_TOKEN,
}
_QWEN2_VL: dict[str, Any] = {
    "vision_config": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": BEFORE_IMAGE,
    "vision_end_token_id": AFTER_IMAGE,
}
# Classes whose head size is hidden_size / num_attention_heads, whatever head_dim says.
_HEADS_OF_HIDDEN = {"opt", "qwen2_vl"}
# Numbers that every class has, off its defaults by so much that logits show it.
_NORM_EPS, _ROPE_THETA = 2e-3, 500.0
_QWEN = {"max_window_layers": 1}
_GEMMA = {"query_pre_attn_scalar": 24, "sliding_window": 16, "pad_token_id": 0}


def tiny_config(model_type: str, sizes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Arguments of AutoConfig.for_model. sizes: under Llama's names."""
    if model_type in _TEXTS:
        return _with_vision(model_type, sizes, changes)
    config = _with_heads(model_type, sizes)
    arch = architectures()[model_type]
    config[arch.intermediate_size] = config.pop("intermediate_size")
    if isinstance(arch.norm_eps, str):
        config[arch.norm_eps] = _NORM_EPS
    if arch.positions is None:
        config["rope_theta"] = _ROPE_THETA
    return config | _differences(model_type) | changes


def _with_heads(model_type: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes, with as many heads as make head_dim what it is where the class has no such key."""
    if model_type not in _HEADS_OF_HIDDEN:
        return dict(sizes)
    rest = {key: value for key, value in sizes.items() if key != "head_dim"}
    heads = sizes["hidden_size"] // sizes.get("head_dim", 16)
    if model_type == "opt":  # whose class has no such key
        return {k: v for k, v in rest.items() if k != "num_key_value_heads"} | {
            "num_attention_heads": heads
        }
    return rest | {"num_attention_heads": heads, "num_key_value_heads": 1}


def is_vision(model_type: str) -> bool:
    return model_type in _TEXTS


def model_class(model_type: str) -> Any:
    """transformers' Auto class of the whole model."""
    import transformers

    if is_vision(model_type):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def in_memory(decoder: Decoder, name: str) -> str:
    """A name on disk as transformers' class has it."""
    vision = decoder.architecture.vision
    return name if vision is None else vision.name_in_memory(name)


def _with_vision(model_type: str, sizes: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested configurations. changes: of text_config, but for those in _OUTER_KEYS."""
    outer = {key: value for key, value in changes.items() if key in _OUTER_KEYS}
    changes = {key: value for key, value in changes.items() if key not in _OUTER_KEYS}
    kind = changes.get("text_model_type", _TEXTS[model_type])
    changes.pop("text_model_type", None)
    text = {**_with_heads(model_type, sizes), "rms_norm_eps": _NORM_EPS, "model_type": kind}
    if kind != "llama":  # the others have no such keys
        text = {k: v for k, v in text.items() if k not in ("attention_bias", "mlp_bias")}
    if model_type == "llava":
        text["rope_theta"] = _ROPE_THETA
        return {"text_config": text | changes, **_LLAVA, **outer}
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    side = half * 3 // 8
    text |= _QWEN
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000.0,  # its own is 1e6
        "mrope_section": [half - 2 * side, side, side],
    }
    tower = {**_QWEN2_VL["vision_config"], "hidden_size": text["hidden_size"]}
    return {"text_config": text | changes, **_QWEN2_VL, "vision_config": tower, **outer}


def _differences(model_type: str) -> dict[str, Any]:
    return {
        "granite": {
            "embedding_multiplier": 1.5,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.3,
            "logits_scaling": 3.0,
        },
        "gemma2": {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        # Layers with a window, whose rotation is another one, and layers without. Scores are kept
        # small: attention that is one-hot with random weights makes chaos of any rounding.
        "gemma3_text": {
            **_GEMMA,
            "query_pre_attn_scalar": 500,
            "layer_types": None,
            "sliding_window_pattern": 2,
            "rope_local_base_freq": 200.0,
            "final_logit_softcapping": 4.0,
        },
        "mixtral": _EXPERTS | {"num_experts_per_tok": 3},
        "phi3": {
            "pad_token_id": 0,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 64,
        },
        "qwen2": _QWEN,
        "qwen3": _QWEN,
        # Experts in every other layer.
        "qwen3_moe": {**_EXPERTS, "moe_intermediate_size": 64, "decoder_sparse_step": 2},
    }.get(model_type, {})
