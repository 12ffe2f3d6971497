"""The ends of a graph: from token ids to the first block, and from the last one to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import (
    BATCH,
    FLOAT32,
    INT64,
    ONNX_TYPES,
    POSITIONS,
    SEQUENCE,
    Dims,
    Operand,
    module_path,
)

if TYPE_CHECKING:
    from awq_edge.exporter.emit_graph import GraphEmitter


def embedding_nodes(emitter: GraphEmitter, input_ids: gs.Variable) -> gs.Variable:
    """input_ids [B, S] ─ Gather ─ (Cast) ─ (Mul(scale)) ─ [B, S, embedding_size]"""
    embedding = emitter.program.embedding
    path = module_path(embedding.table.name.removesuffix(".weight"))
    weight = emitter.storage.table(embedding)
    shape = (BATCH, SEQUENCE, embedding.table.shape[1])
    inputs = [emitter.builder.weight(weight), input_ids]
    x = emitter.op(f"{path}/Gather", inputs, shape, dtype=ONNX_TYPES[weight.dtype])
    x = emitter.cast(path, x, emitter.dtype)
    return emitter.scaled(f"{path}/scale", x, "embedding.scale", embedding.scale)


def first_hidden(emitter: GraphEmitter, x: gs.Variable) -> gs.Variable:
    """The input of the first block [B, S, hidden].

    embeddings [B, S, embedding_size] ─ (project_in) ─┬───────────────── hidden
    past_length [B] ─ (position ids ─ Gather(learned positions)) ─ (Add)
    """
    embedding = emitter.program.embedding
    if embedding.projection is not None:
        x = emitter.linear(embedding.projection, x)
    if embedding.positions is None:
        return x
    path = module_path(embedding.positions.name.removesuffix(".weight"))
    weight = emitter.builder.weight(emitter.storage.tensor(embedding.positions))
    ids = _learned_ids(emitter, path, x, embedding.position_offset)
    learned = emitter.op(f"{path}/Gather", [weight, ids], x.shape)
    return emitter.op(f"{path}/Add", [x, learned], x.shape)


def _learned_ids(emitter: GraphEmitter, path: str, x: gs.Variable, offset: int) -> gs.Variable:
    """Rows of the table of learned positions: int64 [B, S].

    x [B, S, ...] ─ Shape ─ Range(S) ─ Add(first row) ─┐
    past_length ─ Unsqueeze [B, 1] ─────────────── Add
    """
    builder = emitter.builder

    def op(name: str, inputs: list[Operand], *shape: int | str) -> gs.Variable:
        return emitter.op(f"{path}/ids/{name}", inputs, shape, dtype=INT64)

    ends = {"start": 1, "end": 2}
    length = emitter.op(f"{path}/ids/Shape", [x], (1,), ends, INT64)
    count = op("Squeeze", [length])
    limits = [builder.inline("zero.scalar", 0), count, builder.inline("one.scalar", 1)]
    steps = op("Range", limits, SEQUENCE)
    steps = op("offset/Add", [steps, builder.inline("positions.offset", offset)], SEQUENCE)
    column = op("Unsqueeze", [emitter.past_length, builder.inline("axes.1", [1])], BATCH, 1)
    return op("Add", [column, steps], BATCH, SEQUENCE)


def output_nodes(
    emitter: GraphEmitter, x: gs.Variable, positions: gs.Variable, logits: gs.Variable
) -> None:
    """Final norm and lm_head, of the wanted rows alone: a prefill needs one of S.

    x [B, S, hidden] ───────┐
    logits_positions ─ Unsqueeze ─ GatherND ─ [B, P, hidden] ─ (norm) ─ (project_out) ─ (scale)
                                                                         ─ lm_head ─ (soft cap)
    """
    output = emitter.program.output
    path = module_path(output.head.name)
    rows = _wanted_rows(emitter, f"{path}/rows", x, positions)
    if output.norm is not None:
        rows = emitter.norm(output.norm, rows)
    if output.projection is not None:
        rows = emitter.linear(output.projection, rows)
    # Before a linear without bias, of fewer channels and far from float16's largest number.
    rows = emitter.scaled(f"{path}/scale", rows, "logits.scale", output.scale)
    if output.soft_cap is None:
        emitter.linear(output.head, rows, logits)
        return
    raw = emitter.builder.variable(f"{path}/output_0", emitter.dtype, logits.shape)
    emitter.linear(output.head, rows, raw)
    _soft_cap(emitter, f"{path}/soft_cap", raw, output.soft_cap, logits)


def _wanted_rows(
    emitter: GraphEmitter, path: str, x: gs.Variable, positions: gs.Variable
) -> gs.Variable:
    last = emitter.builder.inline("axes.last", [-1])
    shape: Dims = (BATCH, POSITIONS, 1)
    indices = emitter.op(f"{path}/Unsqueeze", [positions, last], shape, dtype=INT64)
    shape = (BATCH, POSITIONS, emitter.program.hidden_size)
    return emitter.op(f"{path}/GatherND", [x, indices], shape, {"batch_dims": 1})


def _soft_cap(
    emitter: GraphEmitter, path: str, x: gs.Variable, cap: float, output: gs.Variable
) -> None:
    """c tanh(x / c), in float32: x ─ (Cast) ─ Div ─ Tanh ─ Mul ─ (Cast)"""
    builder, shape = emitter.builder, output.shape
    constant = builder.inline("logits.soft_cap", cap, np.float32)
    x = emitter.cast(f"{path}/in", x, FLOAT32)
    x = emitter.op(f"{path}/Div", [x, constant], shape, dtype=FLOAT32)
    x = emitter.op(f"{path}/Tanh", [x], shape, dtype=FLOAT32)
    if emitter.dtype == FLOAT32:
        builder.node("Mul", f"{path}/Mul", [x, constant], [output])
        return
    x = emitter.op(f"{path}/Mul", [x, constant], shape, dtype=FLOAT32)
    builder.node("Cast", f"{path}/out/Cast", [x], [output], {"to": emitter.dtype})
