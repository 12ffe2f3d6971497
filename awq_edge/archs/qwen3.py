"""Qwen3 dense."""

from __future__ import annotations

from awq_edge.archs.base import Architecture

ARCHITECTURE = Architecture(
    model_type="qwen3",
    examples="Qwen3 dense",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm=True,
    window_rule="layer_types",
)
