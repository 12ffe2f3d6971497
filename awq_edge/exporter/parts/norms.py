"""Norms: RMSNormalization, of Gemma with 1 + w as its weight, and LayerNormalization."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, SEQUENCE, Dims, module_path
from awq_edge.exporter.parts.building import Building
from awq_edge.exporter.weights import FLOAT32, Part


def norm(building: Building, x: gs.Variable, module: str, part: Part) -> gs.Variable:
    """The norm of this full name over the last axis of x, statistics in float32."""
    builder, sources, decoder = building.builder, building.sources, building.decoder
    source = f"{module}.weight"
    weight = sources.dense(source, source, building.dtype, part, decoder.norm_offset)
    inputs, kind = [x, builder.weight(weight)], "RMSNormalization"
    if building.arch.norm_kind == "layer":
        source, kind = f"{module}.bias", "LayerNormalization"
        inputs.append(builder.weight(sources.dense(source, source, building.dtype, part)))
    attributes = {"axis": -1, "epsilon": decoder.norm_eps, "stash_type": FLOAT32}
    return building.op(f"{module_path(module)}/{kind}", inputs, x.shape, attributes)


def head_norm(building: Building, x: gs.Variable, module: str, heads: int) -> gs.Variable:
    """[B, S, heads * size] ─ Reshape ─ RMSNormalization of each head ─ Reshape."""
    builder, size, path = building.builder, building.decoder.head_size, module_path(module)
    split: Dims = (BATCH, SEQUENCE, heads, size)
    shape = builder.inline(f"shape.{heads}x{size}", [0, 0, heads, size])
    by_head = building.op(f"{path}/split/Reshape", [x, shape], split)
    normed = norm(building, by_head, module, "blocks")
    shape = builder.inline(f"shape.{heads * size}", [0, 0, heads * size])
    return building.op(f"{path}/join/Reshape", [normed, shape], x.shape)
