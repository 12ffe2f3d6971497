"""Granite 3.x, dense: Llama with four multipliers."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LlamaCpp

ARCHITECTURE = Architecture(
    model_type="granite",
    examples="Granite 3.x dense",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    embedding_multiplier="embedding_multiplier",
    residual_multiplier="residual_multiplier",
    attention_multiplier="attention_multiplier",
    logits_divisor="logits_scaling",
    nullable=("num_key_value_heads",),
    llama_cpp=LlamaCpp(
        name="granite",
        rotates_neighbours=True,
        rope_kinds=("default", "linear", "llama3", "yarn"),
        output_bias=True,
        mlp_bias=True,
        writes_multipliers=True,
    ),
)
