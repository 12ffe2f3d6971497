"""Qwen3 dense."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LlamaCpp

ARCHITECTURE = Architecture(
    model_type="qwen3",
    examples="Qwen3 dense",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm=True,
    window_rule="layer_types",
    nullable=("num_key_value_heads",),
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    llama_cpp=LlamaCpp(name="qwen3"),
)
