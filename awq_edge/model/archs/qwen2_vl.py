"""Qwen2-VL: Qwen2 whose rotation has three axes (time, height, width), and a tower of its own."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LlamaCpp
from awq_edge.model.archs.vision import Tower, Vision

_TOWER = Tower(patch_size=14, merge_size=2)

ARCHITECTURE = Architecture(
    model_type="qwen2_vl",
    examples="Qwen2-VL 2B, 7B, 72B",
    qkv_bias=True,
    window_rule="layer_types",
    vision=Vision(
        parts=("visual",),
        in_memory={
            "model": "model.language_model",
            "visual": "model.visual",
        },
        image_token=("image_token_id", 151655),
        frame=(("vision_start_token_id", 151652), ("vision_end_token_id", 151653)),
        towers={"qwen2_vl_vision": _TOWER, "qwen2_vl": _TOWER},
        marks_images=True,
    ),
    nullable=("num_key_value_heads",),
    defaults={
        "sliding_window": 4096,
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "max_window_layers": 80,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    },
    no_effect=("video_token_id",),
    llama_cpp=LlamaCpp(name="qwen2vl", rope_kinds=("default",), free_head_size=False),
)
