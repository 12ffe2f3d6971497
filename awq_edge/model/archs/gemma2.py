"""Gemma 2."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LlamaCpp

ARCHITECTURE = Architecture(
    model_type="gemma2",
    examples="Gemma 2",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    activations=("gelu_pytorch_tanh",),
    activation="hidden_activation",
    norm_kind="rms_offset",
    window_rule="layer_types",
    full_attention_every=2,
    attention_softcap="attn_logit_softcapping",
    logits_softcap="final_logit_softcapping",
    attention_scale="query_pre_attn_scalar",
    scaled_embedding=True,
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    nullable=(),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    required={"use_bidirectional_attention": False},
    llama_cpp=LlamaCpp(
        name="gemma2",
        rope_kinds=("default", "linear"),
        full_attention_every=2,
        own_output=False,
        attention_softcap="always",
        logits_softcap="always",
        wide_scale_layers=46,
    ),
)
