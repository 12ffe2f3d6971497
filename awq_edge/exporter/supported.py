"""What models need that not every graph, or runtime, has."""

from __future__ import annotations

from awq_edge.archs import Decoder


def beyond_llama(decoder: Decoder) -> tuple[str, ...]:
    """What a model has, in words, that blocks like Llama's do not: those of llama, mistral, qwen2
    and qwen3, with biases, norms of heads and windows."""
    arch = decoder.architecture
    is_fused = len(arch.qkv) == 1 or (arch.gated and len(arch.mlp_in) == 1)
    has_post_norm = arch.attention_post_norm is not None or arch.mlp_post_norm is not None
    has_softcap = decoder.attention_softcap is not None or decoder.logits_softcap is not None
    has_local_rope = any(decoder.windows) and decoder.rope != decoder.local_rope
    found = {
        "a vision tower": decoder.images is not None,
        "experts": decoder.moe is not None,
        "fused projections": is_fused,
        "an MLP without a gate": not arch.gated,
        f"the activation {decoder.activation}": decoder.activation != "silu",
        "LayerNorm": arch.norm_kind == "layer",
        "norms with an offset": arch.norm_kind == "rms_offset",
        "norms behind attention and MLP": has_post_norm,
        "norms after the residual sums": not decoder.norm_first,
        "soft caps": has_softcap,
        "scaled embeddings": decoder.embedding_scale != 1.0,
        "projected embeddings": decoder.has_projections,
        "learned positions": arch.positions is not None,
        "longrope": decoder.rope.kind == "longrope",
        "a rotary embedding of its own for layers with a window": has_local_rope,
    }
    return tuple(what for what, is_there in found.items() if is_there)


# What the canonical graph has no nodes for yet, in the words of `beyond_llama`. A vision-language
# model's graph takes text; of images, their embeddings (docs/graph.md).
NOT_YET: frozenset[str] = frozenset()


def unsupported(decoder: Decoder) -> str | None:
    """What a model needs and the canonical graph does not have, in words; None where it has
    everything."""
    return ", ".join(what for what in beyond_llama(decoder) if what in NOT_YET) or None
