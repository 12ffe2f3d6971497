"""Attention of a block: linears, norms of heads, awq_edge::CachedAttention."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, DOMAIN, SEQUENCE, module_path
from awq_edge.exporter.parts.building import Building, parent_of
from awq_edge.exporter.parts.linears import block_linear, block_linears
from awq_edge.exporter.parts.norms import head_norm
from awq_edge.exporter.weights import FLOAT32, of_array
from awq_edge.rope import rope_tables

_CACHE_PARTS = ("key", "value")

Tables = tuple[gs.Constant | None, gs.Constant | None]


def attention(
    building: Building, layer: int, x: gs.Variable, past_length: gs.Variable
) -> gs.Variable:
    """Attention of one block, [B, S, hidden]; adds the block's cache to inputs and outputs.

        ┌─ q_proj ─ (q_norm) ─┐  ┌─ past_length, (tables), past.{i}.*
    x ──┼─ k_proj ─ (k_norm) ─┼──┴─ CachedAttention ─ o_proj
        └─ v_proj ────────────┘      └─ present.{i}.*
    """
    decoder, arch, builder = building.decoder, building.arch, building.builder
    prefix = decoder.layer_prefix(layer)
    q_size, kv_size = (
        heads * decoder.head_size for heads in (decoder.num_heads, decoder.num_kv_heads)
    )
    q, k, v = block_linears(building, layer, arch.qkv, x, (q_size, kv_size, kv_size))
    if arch.qk_norm:
        q = head_norm(building, q, f"{prefix}.{arch.q_norm}", decoder.num_heads)
        k = head_norm(building, k, f"{prefix}.{arch.k_norm}", decoder.num_kv_heads)
    cache = (BATCH, decoder.num_kv_heads, building.context, decoder.head_size)
    past, present = (
        [builder.variable(f"{when}.{layer}.{part}", building.dtype, cache) for part in _CACHE_PARTS]
        for when in ("past", "present")
    )
    builder.target.graph.inputs.extend(past)
    builder.target.graph.outputs.extend(present)
    output, *_ = builder.node(
        "CachedAttention",
        f"{module_path(parent_of(prefix, arch.attention_out))}/CachedAttention",
        [q, k, v, past_length, *_tables(building, layer), *past],
        [(building.dtype, (BATCH, SEQUENCE, q_size)), *present],
        _attributes(building, layer),
        DOMAIN,
    )
    return block_linear(building, layer, arch.attention_out, output)


def _attributes(building: Building, layer: int) -> dict[str, Any]:
    decoder = building.decoder
    attributes: dict[str, Any] = {
        "num_heads": decoder.num_heads,
        "num_kv_heads": decoder.num_kv_heads,
        "head_size": decoder.head_size,
        "rotary_size": decoder.rope.rotary_size,
        "scale": float(decoder.attention_scale),
    }
    window = decoder.windows[layer]
    if window is not None and window < building.context:
        attributes["window"] = window
    if decoder.attention_softcap is not None:
        attributes["soft_cap"] = float(decoder.attention_softcap)
    return attributes


def _tables(building: Building, layer: int) -> Tables:
    """Cosine and sine, float32 [context, rotary_size / 2], once for all layers that share them;
    none where positions are learned."""
    decoder, builder = building.decoder, building.builder
    is_local = decoder.windows[layer] is not None and decoder.local_rope != decoder.rope
    rope = decoder.local_rope if is_local else decoder.rope
    if rope.rotary_size == 0:
        return None, None
    cosine, sine = rope_tables(rope, building.context)
    prefix = "rope.local" if is_local else "rope"
    return (
        builder.weight(of_array(f"{prefix}.cosine", cosine, FLOAT32, "tables")),
        builder.weight(of_array(f"{prefix}.sine", sine, FLOAT32, "tables")),
    )
