"""Gemma 3, text: 270M, 1B, and the language model of the larger ones."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.llama_cpp import LlamaCpp

ARCHITECTURE = Architecture(
    model_type="gemma3_text",
    examples="Gemma 3 270M, 1B (text)",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm=True,
    activations=("gelu_pytorch_tanh",),
    activation="hidden_activation",
    norm_kind="rms_offset",
    window_rule="layer_types",
    full_attention_every="sliding_window_pattern",
    local_rope_theta="rope_local_base_freq",
    logits_softcap="final_logit_softcapping",
    attention_scale="query_pre_attn_scalar",
    scaled_embedding=True,
    overflows_float16=True,  # github.com/huggingface/transformers/issues/36822
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    nullable=(),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "max_position_embeddings": 131072,
        "vocab_size": 262208,
        "tie_word_embeddings": True,
    },
    required={"use_bidirectional_attention": False},
    # The class writes the one from what it has read as the other, and gives its attention no cap.
    no_effect=("_sliding_window_pattern", "attn_logit_softcapping"),
    llama_cpp=LlamaCpp(
        name="gemma3",
        rope_kinds=("default", "linear"),
        full_attention_every=6,
        logits_softcap="optional",
        wide_scale_layers=62,
    ),
)
