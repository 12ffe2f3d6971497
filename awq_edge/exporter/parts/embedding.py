"""From token ids to the input of the first block."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, SEQUENCE, module_path
from awq_edge.exporter.parts.building import INT64, Building
from awq_edge.exporter.parts.linears import matmul
from awq_edge.exporter.weights import FLOAT32


def embedding(building: Building, input_ids: gs.Variable) -> gs.Variable:
    """Embeddings of token ids [B, S, embedding_size], in the activations' type.

    input_ids [B, S] ─ Gather ─ (Cast) ─ (Mul(scale))
    """
    decoder, path = building.decoder, module_path(building.arch.embedding)
    x = _rows(building, input_ids)
    return building.scaled(f"{path}/scale", x, "embedding.scale", decoder.embedding_scale)


def first_hidden(building: Building, x: gs.Variable, past_length: gs.Variable) -> gs.Variable:
    """The input of the first block [B, S, hidden].

    embeddings [B, S, embedding_size] ─ (project_in) ─┬───────────────── hidden
    past_length [B] ─ (position ids ─ Gather(learned positions)) ─ (Add)
    """
    decoder, arch = building.decoder, building.arch
    if decoder.has_projections:
        x = _projected(building, x)
    if arch.positions is None:
        return x
    path = module_path(arch.positions)
    source = f"{arch.positions}.weight"
    weight = building.sources.dense(source, source, building.dtype, "embedding")
    ids = _position_ids(building, path, x, past_length)
    shape = (BATCH, SEQUENCE, decoder.hidden_size)
    learned = building.op(f"{path}/Gather", [building.builder.weight(weight), ids], shape)
    return building.op(f"{path}/Add", [x, learned], shape)


def _rows(building: Building, input_ids: gs.Variable) -> gs.Variable:
    """input_ids [B, S] ─ Gather ─ (Cast) ─ [B, S, embedding_size]"""
    arch = building.arch
    source, path = f"{arch.embedding}.weight", module_path(arch.embedding)
    exact = building.checkpoint.quantization is None and building.dtype == FLOAT32
    stored = building.sources.embedding_dtype(source, exact)
    weight = building.sources.dense(source, source, stored, "embedding")
    shape = (BATCH, SEQUENCE, building.decoder.embedding_size)
    inputs = [building.builder.weight(weight), input_ids]
    rows = building.op(f"{path}/Gather", inputs, shape, dtype=stored)
    if stored == building.dtype:
        return rows
    return building.op(f"{path}/Cast", [rows], shape, {"to": building.dtype})


def _projected(building: Building, x: gs.Variable) -> gs.Variable:
    """Embeddings of fewer channels than the blocks have, through project_in."""
    module = building.arch.project_in
    shape = (BATCH, SEQUENCE, building.decoder.hidden_size)
    output = building.builder.variable(f"{module_path(module)}/output_0", building.dtype, shape)
    matmul(building, module, f"{module}.weight", x, "embedding", output)
    return output


def _position_ids(
    building: Building, path: str, x: gs.Variable, past_length: gs.Variable
) -> gs.Variable:
    """Rows of the table of learned positions: int64 [B, S].

    x [B, S, ...] ─ Shape ─ Range(S) ─ Add(first row) ─┐
    past_length ─ Unsqueeze [B, 1] ─────────────── Add
    """
    builder = building.builder

    def op(name: str, inputs: list[gs.Variable | gs.Constant], *shape: int | str) -> gs.Variable:
        return building.op(f"{path}/ids/{name}", inputs, shape, dtype=INT64)

    length = building.op(f"{path}/ids/Shape", [x], (1,), {"start": 1, "end": 2}, dtype=INT64)
    count = op("Squeeze", [length])
    limits = (builder.inline("zero.scalar", 0), count, builder.inline("one.scalar", 1))
    steps = op("Range", list(limits), SEQUENCE)
    first = builder.inline("positions.offset", building.arch.position_offset)
    steps = op("offset/Add", [steps, first], SEQUENCE)
    column = op("Unsqueeze", [past_length, builder.inline("axes.1", [1])], BATCH, 1)
    return op("Add", [column, steps], BATCH, SEQUENCE)
