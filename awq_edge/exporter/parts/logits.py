"""From the last block to logits."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from awq_edge.exporter.graph import BATCH, POSITIONS, module_path
from awq_edge.exporter.parts.building import INT64, Building
from awq_edge.exporter.parts.linears import matmul, w4a16
from awq_edge.exporter.parts.norms import norm
from awq_edge.exporter.weights import FLOAT32
from awq_edge.model.lm_head import rounded_format


def logits(
    building: Building, x: gs.Variable, positions: gs.Variable, bits: int, output: gs.Variable
) -> None:
    """Final norm and lm_head, of the wanted rows alone: a prefill needs one of S.

    x [B, S, hidden] ───────┐
    logits_positions ─ Unsqueeze ─ GatherND ─ [B, P, hidden] ─ (norm) ─ (project_out) ─ (scale)
                                                                         ─ lm_head ─ (soft cap)
    bits: of lm_head where it is rounded at export; 16 for unquantized.
    """
    decoder, arch, builder = building.decoder, building.arch, building.builder
    rows = _wanted_rows(building, x, positions)
    if decoder.norm_first:  # otherwise each block ends in a norm
        rows = norm(building, rows, arch.final_norm, "lm_head")
    if decoder.has_projections:
        module, shape = arch.project_out, (BATCH, POSITIONS, decoder.embedding_size)
        projected = builder.variable(f"{module_path(module)}/output_0", building.dtype, shape)
        matmul(building, module, f"{module}.weight", rows, "lm_head", projected)
        rows = projected
    path = module_path(arch.lm_head)
    # Before a linear without bias, of fewer channels and far from float16's largest number.
    rows = building.scaled(f"{path}/scale", rows, "logits.scale", 1.0 / decoder.logits_divisor)
    if decoder.logits_softcap is None:
        _lm_head(building, rows, bits, output)
        return
    raw = builder.variable(f"{path}/output_0", building.dtype, output.shape)
    _lm_head(building, rows, bits, raw)
    _soft_cap(building, f"{path}/soft_cap", raw, decoder.logits_softcap, output)


def _wanted_rows(building: Building, x: gs.Variable, positions: gs.Variable) -> gs.Variable:
    path = f"{module_path(building.arch.lm_head)}/rows"
    last = building.builder.inline("axes.last", [-1])
    shape: tuple[int | str, ...] = (BATCH, POSITIONS, 1)
    indices = building.op(f"{path}/Unsqueeze", [positions, last], shape, dtype=INT64)
    shape = (BATCH, POSITIONS, building.decoder.hidden_size)
    return building.op(f"{path}/GatherND", [x, indices], shape, {"batch_dims": 1})


def _lm_head(building: Building, rows: gs.Variable, bits: int, output: gs.Variable) -> None:
    arch, checkpoint, sources = building.arch, building.checkpoint, building.sources
    source = f"{arch.embedding if building.decoder.tied_embeddings else arch.lm_head}.weight"
    if checkpoint.is_quantized(arch.lm_head):
        bits = checkpoint.linear_format(arch.lm_head).bits
        weights = sources.quantized(arch.lm_head, "lm_head")
    elif bits == 16:
        matmul(building, arch.lm_head, source, rows, "lm_head", output)
        return
    else:
        weights = sources.rounded(source, arch.lm_head, rounded_format(bits), "lm_head")
    w4a16(building, arch.lm_head, rows, weights, bits, output)


def _soft_cap(
    building: Building, path: str, x: gs.Variable, cap: float, output: gs.Variable
) -> None:
    """c tanh(x / c), in float32: x ─ (Cast) ─ Div ─ Tanh ─ Mul ─ (Cast)"""
    builder, shape = building.builder, output.shape
    constant = builder.inline("logits.soft_cap", cap, np.float32)
    is_wide = building.dtype == FLOAT32
    if not is_wide:
        x = building.op(f"{path}/in/Cast", [x], shape, {"to": FLOAT32}, FLOAT32)
    x = building.op(f"{path}/Div", [x, constant], shape, dtype=FLOAT32)
    x = building.op(f"{path}/Tanh", [x], shape, dtype=FLOAT32)
    if is_wide:
        builder.node("Mul", f"{path}/Mul", [x, constant], [output])
        return
    x = building.op(f"{path}/Mul", [x, constant], shape, dtype=FLOAT32)
    builder.node("Cast", f"{path}/out/Cast", [x], [output], {"to": building.dtype})
