"""Llama: TinyLlama, Llama 2, Llama 3.x, SmolLM2."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LLAMA

ARCHITECTURE = Architecture(
    model_type="llama",
    examples="TinyLlama, Llama 2, Llama 3.x, SmolLM2",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    no_effect=("pretraining_tp",),
    llama_cpp=LLAMA,
)
