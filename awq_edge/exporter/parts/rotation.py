"""Rotary tables: one row a position, or, of positions with several axes, one row a token."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, SEQUENCE
from awq_edge.exporter.parts.building import Building
from awq_edge.exporter.weights import FLOAT32, of_array
from awq_edge.model.archs.base import Rope
from awq_edge.model.rope import rope_tables

# Cosine and sine.
Tables = tuple[gs.Constant | None, gs.Constant | None]
TokenTables = tuple[gs.Variable, gs.Variable]


def layer_tables(building: Building, layer: int) -> Tables:
    """Cosine and sine, float32 [context, rotary_size / 2], once for all layers that share them;
    none where positions are learned."""
    decoder = building.decoder
    is_local = decoder.windows[layer] is not None and decoder.local_rope != decoder.rope
    if is_local:
        return _tables(building, "rope.local", decoder.local_rope)
    return _tables(building, "rope", decoder.rope)


def token_tables(building: Building, position_ids: gs.Variable) -> TokenTables:
    """Cosine and sine of every token, [B, S, rotary_size / 2] in the activations' type.

    position_ids: int64 [axes, B, S]. Each pair of channels turns with the position on one axis:
    the first `sections[0]` with the first, and so on.

    position_ids ─ Gather(table) [axes, B, S, half] ─ Mul(pairs of each axis) ─ ReduceSum ─ (Cast)
    """
    builder, rope = building.builder, building.decoder.rope
    half, axes = rope.rotary_size // 2, len(rope.sections)
    of_axis = np.repeat(np.arange(axes), rope.sections)  # [half]
    pairs = (of_axis[None] == np.arange(axes)[:, None]).astype(np.float32)
    chosen = builder.inline("rope.sections", pairs[:, None, None], np.float32)
    first = builder.inline("axes.0", [0])
    result = (BATCH, SEQUENCE, half)

    def rows(name: str, table: gs.Constant | None) -> gs.Variable:
        assert table is not None
        path, each = f"/rope/{name}", (axes, BATCH, SEQUENCE, half)
        row = building.op(f"{path}/Gather", [table, position_ids], each, dtype=FLOAT32)
        row = building.op(f"{path}/Mul", [row, chosen], each, dtype=FLOAT32)
        row = building.op(f"{path}/ReduceSum", [row, first], result, {"keepdims": 0}, dtype=FLOAT32)
        if building.dtype == FLOAT32:
            return row
        return building.op(f"{path}/Cast", [row], result, {"to": building.dtype})

    cosine, sine = _tables(building, "rope", rope)
    return rows("cosine", cosine), rows("sine", sine)


def rotated(
    building: Building, name: str, x: gs.Variable, heads: int, tables: TokenTables
) -> gs.Variable:
    """x [B, S, heads * head_size], each token turned by its row of the tables."""
    decoder = building.decoder
    attributes = {"num_heads": heads, "interleaved": 0}
    if decoder.rope.rotary_size != decoder.head_size:
        attributes["rotary_embedding_dim"] = decoder.rope.rotary_size
    return building.op(f"{name}/RotaryEmbedding", [x, *tables], x.shape, attributes)


def _tables(building: Building, name: str, rope: Rope) -> Tables:
    if rope.rotary_size == 0:
        return None, None
    builder = building.builder
    cosine, sine = rope_tables(rope, building.context)
    return (
        builder.weight(of_array(f"{name}.cosine", cosine, FLOAT32, "tables")),
        builder.weight(of_array(f"{name}.sine", sine, FLOAT32, "tables")),
    )
