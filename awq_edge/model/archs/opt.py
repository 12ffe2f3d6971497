"""OPT, and Galactica, which shares its class."""

from __future__ import annotations

from awq_edge.model.archs.base import Architecture

ARCHITECTURE = Architecture(
    model_type="opt",
    examples="OPT, Galactica",
    qkv_bias="enable_bias",
    output_bias="enable_bias",
    mlp_bias="enable_bias",
    gated=False,
    activations=("relu", "gelu"),
    activation="activation_function",
    intermediate_size="ffn_dim",
    norm_kind="layer",
    norm_eps=1e-5,
    norm_first="do_layer_norm_before",
    attention_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    attention_out="self_attn.out_proj",
    mlp_in=("fc1",),
    mlp_out="fc2",
    embedding="model.decoder.embed_tokens",
    embedding_size="word_embed_proj_dim",
    project_in="model.decoder.project_in",
    project_out="model.decoder.project_out",
    positions="model.decoder.embed_positions",
    position_offset=2,
    layers="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    defaults={
        "enable_bias": True,
        "do_layer_norm_before": True,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    required={"layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False},
)
