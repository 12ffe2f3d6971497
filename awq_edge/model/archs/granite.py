"""Granite 3.x, dense: Llama with four multipliers."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture

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
)
