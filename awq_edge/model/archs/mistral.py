"""Mistral 7B, Ministral."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LLAMA

ARCHITECTURE = Architecture(
    model_type="mistral",
    examples="Mistral 7B, Ministral",
    window_rule="all_layers",
    nullable=("head_dim",),
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    llama_cpp=LLAMA,
)
