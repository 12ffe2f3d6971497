"""Phi-3 mini and medium, Phi-3.5 mini, Phi-4, Phi-4 mini."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LlamaCpp

ARCHITECTURE = Architecture(
    model_type="phi3",
    examples="Phi-3 mini and medium, Phi-3.5 mini, Phi-4, Phi-4 mini",
    window_rule="all_layers",
    partial_rotary=True,
    rope_kinds=("default", "longrope"),
    rope_names={"su": "longrope", "yarn": "longrope"},  # of its first files
    qkv=("self_attn.qkv_proj",),
    mlp_in=("mlp.gate_up_proj",),
    nullable=("num_key_value_heads",),
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    llama_cpp=LlamaCpp(name="phi3", rope_kinds=("default", "longrope"), free_head_size=False),
)
