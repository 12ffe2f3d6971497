"""Attention of a block: linears, norms of heads, awq_edge::CachedAttention."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, SEQUENCE, module_path
from awq_edge.exporter.parts.building import Building, parent_of
from awq_edge.exporter.parts.linears import block_linear, block_linears
from awq_edge.exporter.parts.norms import head_norm
from awq_edge.exporter.parts.rotation import TokenTables, layer_tables, rotated
from awq_edge.tensorrt.contract import DOMAIN

_CACHE_PARTS = ("key", "value")


def attention(
    building: Building,
    layer: int,
    x: gs.Variable,
    past_length: gs.Variable,
    turns: TokenTables | None = None,
) -> gs.Variable:
    """Attention of one block, [B, S, hidden]; adds the block's cache to inputs and outputs.

        ┌─ q_proj ─ (q_norm) ─┐  ┌─ past_length, (tables), past.{i}.*
    x ──┼─ k_proj ─ (k_norm) ─┼──┴─ CachedAttention ─ o_proj
        └─ v_proj ────────────┘      └─ present.{i}.*

    turns: of every token, where its position is not its place in the cache; q and k are rotated
    before CachedAttention then.
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
    path = module_path(parent_of(prefix, arch.attention_out))
    tables = layer_tables(building, layer) if turns is None else (None, None)
    if turns is not None:
        q = rotated(building, f"{path}/q", q, decoder.num_heads, turns)
        k = rotated(building, f"{path}/k", k, decoder.num_kv_heads, turns)
    cache = (BATCH, decoder.num_kv_heads, building.context, decoder.head_size)
    past, present = (
        [builder.variable(f"{when}.{layer}.{part}", building.dtype, cache) for part in _CACHE_PARTS]
        for when in ("past", "present")
    )
    builder.target.graph.inputs.extend(past)
    builder.target.graph.outputs.extend(present)
    output, *_ = builder.node(
        "CachedAttention",
        f"{path}/CachedAttention",
        [q, k, v, past_length, *tables, *past],
        [(building.dtype, (BATCH, SEQUENCE, q_size)), *present],
        _attributes(building, layer, decoder.rope.rotary_size if turns is None else 0),
        DOMAIN,
    )
    return block_linear(building, layer, arch.attention_out, output)


def _attributes(building: Building, layer: int, rotary_size: int) -> dict[str, Any]:
    decoder = building.decoder
    attributes: dict[str, Any] = {
        "num_heads": decoder.num_heads,
        "num_kv_heads": decoder.num_kv_heads,
        "head_size": decoder.head_size,
        "rotary_size": rotary_size,
        "scale": float(decoder.attention_scale),
    }
    window = decoder.windows[layer]
    if window is not None and window < building.context:
        attributes["window"] = window
    if decoder.attention_softcap is not None:
        attributes["soft_cap"] = float(decoder.attention_softcap)
    return attributes
