"""Qwen3 with experts: 30B-A3B, 235B-A22B."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture, Experts
from awq_edge.model.archs.llama_cpp import LlamaCpp

ARCHITECTURE = Architecture(
    model_type="qwen3_moe",
    examples="Qwen3 30B-A3B, 235B-A22B",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm=True,
    window_rule="if_used",
    experts=Experts(
        router="mlp.gate",
        mlp_in=("mlp.experts.{expert}.gate_proj", "mlp.experts.{expert}.up_proj"),
        mlp_out="mlp.experts.{expert}.down_proj",
        normalised="norm_topk_prob",
    ),
    nullable=(),
    defaults={
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "num_experts": 128,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
    },
    llama_cpp=LlamaCpp(name="qwen3moe"),
)
