"""LLaVA: a CLIP or SigLIP tower, a projector of two linears, and Llama, Mistral or Qwen2."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.vision import Tower, Vision

ARCHITECTURE = Architecture(
    model_type="llava",
    examples="LLaVA 1.5, BakLLaVA, LLaVA-Interleave Qwen",
    embedding="language_model.model.embed_tokens",
    layers="language_model.model.layers",
    final_norm="language_model.model.norm",
    lm_head="language_model.lm_head",
    vision=Vision(
        parts=("vision_tower", "multi_modal_projector"),
        in_memory={
            "language_model.model": "model.language_model",
            "language_model.lm_head": "lm_head",
            "vision_tower": "model.vision_tower",
            "multi_modal_projector": "model.multi_modal_projector",
        },
        optional_level="vision_model",
        image_token=("image_token_index", 32000),
        image_token_alias="image_token_id",
        towers={
            "clip_vision_model": Tower(patch_size=32, extra=1),
            "siglip_vision_model": Tower(patch_size=16),
        },
        selection="vision_feature_select_strategy",
        texts={
            "llama": {
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "max_position_embeddings": 2048,
            },
            "mistral": {
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 131072,
                "sliding_window": 4096,
            },
            "qwen2": {
                "vocab_size": 151936,
                "hidden_size": 4096,
                "intermediate_size": 22016,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 32768,
                "max_window_layers": 28,
            },
        },
    ),
    # Of the tower and the projector, which transformers runs.
    no_effect=(
        "image_seq_length",
        "multimodal_projector_bias",
        "projector_hidden_act",
        "vision_feature_layer",
    ),
)
