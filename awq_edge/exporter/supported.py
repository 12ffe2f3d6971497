"""What the canonical graph does not have yet of the architectures that the quantizer takes."""

from __future__ import annotations

from awq_edge.archs import Decoder


def unsupported(decoder: Decoder) -> str | None:
    """What a model needs and the graph does not have, in words; None where it has everything."""
    arch = decoder.architecture
    is_fused = len(arch.qkv) == 1 or (arch.gated and len(arch.mlp_in) == 1)
    has_post_norm = arch.attention_post_norm is not None or arch.mlp_post_norm is not None
    has_softcap = decoder.attention_softcap is not None or decoder.logits_softcap is not None
    has_local_rope = any(decoder.windows) and decoder.rope != decoder.local_rope
    missing = {
        "image inputs": decoder.images is not None,
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
    return ", ".join(what for what, is_missing in missing.items() if is_missing) or None
