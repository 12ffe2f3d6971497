"""Rotary tables of positions with several axes: one row a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, FLOAT32, SEQUENCE

if TYPE_CHECKING:
    from awq_edge.exporter.emit_graph import GraphEmitter

# Cosine and sine.
TokenTables = tuple[gs.Variable, gs.Variable]


def token_tables(emitter: GraphEmitter, position_ids: gs.Variable) -> TokenTables:
    """Cosine and sine of every token, [B, S, rotary_size / 2] in the activations' type.

    position_ids: int64 [axes, B, S]. Each pair of channels turns with the position on one axis:
    the first `position_axes[0]` with the first, and so on.

    position_ids ─ Gather(table) [axes, B, S, half] ─ Mul(pairs of each axis) ─ ReduceSum ─ (Cast)
    """
    builder, program = emitter.builder, emitter.program
    name, rope = program.rotations[0]
    half, axes = rope.rotary_size // 2, len(program.position_axes)
    of_axis = np.repeat(np.arange(axes), program.position_axes)  # [half]
    pairs = (of_axis[None] == np.arange(axes)[:, None]).astype(np.float32)
    chosen = builder.inline("rope.sections", pairs[:, None, None], np.float32)
    first = builder.inline("axes.0", [0])
    result = (BATCH, SEQUENCE, half)

    def rows(part: str, table: gs.Constant) -> gs.Variable:
        path, each = f"/rope/{part}", (axes, BATCH, SEQUENCE, half)
        row = emitter.op(f"{path}/Gather", [table, position_ids], each, dtype=FLOAT32)
        row = emitter.op(f"{path}/Mul", [row, chosen], each, dtype=FLOAT32)
        keep = {"keepdims": 0}
        row = emitter.op(f"{path}/ReduceSum", [row, first], result, keep, dtype=FLOAT32)
        return emitter.cast(path, row, emitter.dtype)

    cosine, sine = map(
        builder.weight, emitter.storage.rotation(name, rope, emitter.context, "float32")
    )
    return rows("cosine", cosine), rows("sine", sine)
