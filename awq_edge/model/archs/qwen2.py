"""Qwen2, Qwen2.5."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LlamaCpp

ARCHITECTURE = Architecture(
    model_type="qwen2",
    examples="Qwen2, Qwen2.5",
    qkv_bias=True,
    window_rule="layer_types",
    nullable=("num_key_value_heads",),
    defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    llama_cpp=LlamaCpp(name="qwen2", free_head_size=False),
)
