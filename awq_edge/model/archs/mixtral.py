"""Mixtral 8x7B, 8x22B."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture, Experts
from awq_edge.model.archs.llama_cpp import LLAMA

ARCHITECTURE = Architecture(
    model_type="mixtral",
    examples="Mixtral 8x7B, 8x22B",
    window_rule="all_layers",
    experts=Experts(
        router="block_sparse_moe.gate",
        mlp_in=(
            "block_sparse_moe.experts.{expert}.w1",
            "block_sparse_moe.experts.{expert}.w3",
        ),
        mlp_out="block_sparse_moe.experts.{expert}.w2",
        intermediate_size="intermediate_size",
        num_experts=("num_experts", "num_local_experts"),
    ),
    nullable=("head_dim",),
    defaults={
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    llama_cpp=LLAMA,
)
