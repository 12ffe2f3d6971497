"""Quantizing the output layer (lm_head): its input is what the final norm gives.

    hidden of the last block ─ final norm ─► statistics ─► scale, clips ─► fold, codes

The inverse of its scale goes into the final norm, which nothing else reads: the fold is exact. A
model without that norm, or with a projection after it (OPT 350M), gets clips alone. With tied
embeddings the output layer becomes a weight of its own, and the embedding stays as it is.

The weight is cut into pieces of rows, each a member of one scale group: what is in memory beside it
does not grow with the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from awq_edge.archs import ScaleGroup
from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ModelError
from awq_edge.layouts import Layout
from awq_edge.quantizer.awq import GroupChoice, clip_group, output_error, search_group
from awq_edge.quantizer.blocks import BlockRunner, relative_change
from awq_edge.quantizer.folding import fold, realise_scale, tie_channels
from awq_edge.quantizer.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.host_memory import row_pieces
from awq_edge.quantizer.report import LinearReport, sqnr_db
from awq_edge.quantizer.rounding import (
    NumberFormat,
    Rounded,
    ScaleOverflow,
    require_representable,
    round_to_nearest,
)
from awq_edge.quantizer.scales import Member
from awq_edge.quantizer.statistics import InputStatistics
from awq_edge.quantizer.writer import quantized_tensors, require_finite, storage_dtype, stored
from awq_edge.torch_tensors import read_float32

Tensors = dict[str, torch.Tensor]

_PIECE_VALUES = 1 << 25  # weights of a piece: 128 MB of float32 in each temporary


@dataclass(frozen=True)
class OutputLayer:
    """What is to be done. search: AWQ's scale and clips. gptq: GPTQ's codes where they are better.
    device: where it is done."""

    checkpoint: Checkpoint
    layout: Layout
    number_format: NumberFormat
    search: bool
    gptq: bool
    seed: int
    device: torch.device

    @property
    def name(self) -> str:
        return self.checkpoint.decoder.architecture.lm_head


@dataclass(frozen=True)
class OutputOutcome:
    """tensors: of the output layer, and of the final norm where it changes, by full name, as they
    are stored, on the CPU. scale: what was folded, float32 [in], None for s = 1. norm: the final
    norm's tensors after the fold, float32."""

    tensors: Tensors
    scale: torch.Tensor | None
    norm: Tensors
    report: LinearReport


def quantize_output_layer(layer: OutputLayer, inputs: InputStatistics | None) -> OutputOutcome:
    """Search, fold, round and pack the output layer.

    inputs: of the final norm's output, None to round to nearest; errors are then of the weights.
    Raises ModelError for weights that are not finite or overflow.
    """
    pieces, norm = _pieces(layer), final_norm_tensors(layer.checkpoint, layer.device)
    choice = _search(layer, pieces, norm, inputs)
    factor = None
    if inputs is not None and layer.gptq and inputs.gram is not None:
        gram, scale = inputs.gram, choice.scale
        factor = inverse_factor(gram if scale is None else gram / torch.outer(scale, scale))
    rounded = [_round(layer, name, piece, choice, factor, inputs) for name, piece in pieces.items()]
    whole = Rounded(
        *(
            torch.cat([getattr(piece.rounded, field) for piece in rounded])
            for field in ("codes", "scales", "zeros")
        )
    )
    tensors = quantized_tensors(layer.layout, layer.name, whole, layer.number_format)
    if choice.scale is not None:
        # The rows were scaled piece by piece; here the norm alone.
        fold(layer.checkpoint.decoder, _scale_group(layer, ()), choice.scale, norm)
        for name, tensor in norm.items():
            tensors[name] = stored(layer.checkpoint, name, tensor)
    return OutputOutcome(tensors, choice.scale, norm, _report(layer, rounded, choice))


def observe_output_layer(
    layer: OutputLayer,
    runner: BlockRunner,
    hidden: Sequence[torch.Tensor],
    inputs: InputStatistics,
) -> None:
    """Add what the output layer reads. hidden: outputs of the last block, float32 [batch, length,
    hidden] each. Raises ModelError where that is not finite."""
    with runner.output_input(final_norm_tensors(layer.checkpoint, layer.device)) as norm:
        for part in hidden:
            inputs.add(norm(part))
    if not inputs.is_finite():
        raise ModelError(
            f"{layer.checkpoint.path}: the input of '{layer.name}' is not finite on the "
            "calibration text; the weights are damaged"
        )


def output_fold_change(
    layer: OutputLayer, runner: BlockRunner, hidden: torch.Tensor, outcome: OutputOutcome
) -> float:
    """Relative change of the output layer's input times s by the fold, in float32. hidden: output
    of the last block, float32 [batch, length, hidden]."""
    if outcome.scale is None:
        return 0.0
    before = final_norm_tensors(layer.checkpoint, layer.device)
    outputs = []
    for tensors in (before, outcome.norm):
        with runner.output_input(tensors) as norm:
            outputs.append(norm(hidden))
    return relative_change(outputs[0], outputs[1] * outcome.scale)


def final_norm_tensors(checkpoint: Checkpoint, device: torch.device) -> Tensors:
    """The final norm's tensors by full name, float32."""
    prefix = f"{checkpoint.decoder.architecture.final_norm}."
    names = [name for name in checkpoint.decoder.weight_shapes() if name.startswith(prefix)]
    return {name: read_float32(checkpoint.files, name, device) for name in names}


def _search(
    layer: OutputLayer, pieces: Tensors, norm: Tensors, inputs: InputStatistics | None
) -> GroupChoice:
    """Scale and clips of all pieces; s = 1 without a search."""
    if inputs is None or not layer.search:
        return GroupChoice(None, {}, 0.0, False, False, {})
    decoder, group = layer.checkpoint.decoder, _scale_group(layer, tuple(pieces))
    members = {name: Member(weight, inputs) for name, weight in pieces.items()}
    if group.kind == "none":
        return clip_group(members, layer.number_format)
    storage = {name: storage_dtype(layer.checkpoint, name) for name in norm}
    return search_group(
        members,
        layer.number_format,
        tie=tie_channels(decoder, group),
        realise=realise_scale(decoder, group, norm, storage),
        seed=layer.seed,
    )


def _scale_group(layer: OutputLayer, linears: tuple[str, ...]) -> ScaleGroup:
    """The output layer's scale group, of so many pieces."""
    decoder = layer.checkpoint.decoder
    if not decoder.norm_first or decoder.has_projections:
        return ScaleGroup(layer.name, "none", None, linears)
    return ScaleGroup(layer.name, "norm", decoder.architecture.final_norm, linears)


def _pieces(layer: OutputLayer) -> Tensors:
    """Rows of the weight, which is the embedding's where they are tied: float32, by piece."""
    decoder = layer.checkpoint.decoder
    source = decoder.architecture.embedding if decoder.tied_embeddings else layer.name
    weight = read_float32(layer.checkpoint.files, f"{source}.weight", layer.device)
    require_finite(str(layer.checkpoint.path), f"{source}.weight", weight)
    require_representable(
        str(layer.checkpoint.path), f"{source}.weight", weight, layer.number_format
    )
    rows = max(1, _PIECE_VALUES // weight.shape[1])
    return {f"rows {i}": part for i, part in enumerate(torch.split(weight, rows))}


@dataclass(frozen=True)
class _Piece:
    """Codes of some rows. own, rtn, signal: squared output errors of them and of plain rounding,
    and the squared output; of the weights where there are no inputs."""

    rounded: Rounded
    by_gptq: bool
    own: float
    rtn: float
    signal: float


def _round(
    layer: OutputLayer,
    name: str,
    weight: torch.Tensor,
    choice: GroupChoice,
    factor: torch.Tensor | None,
    inputs: InputStatistics | None,
) -> _Piece:
    scaled, clip = weight if choice.scale is None else weight * choice.scale, choice.clips.get(name)
    nearest = round_to_nearest(scaled, layer.number_format, clip)
    own = _error(nearest, weight, choice.scale, inputs)
    if inputs is None:
        return _Piece(nearest, False, own, own, float(weight.square().sum()))
    signal = inputs.summed_error(weight, lambda rows: weight[rows])
    rtn = choice.rtn_errors.get(name)
    if rtn is None:
        rtn = output_error(weight, None, None, inputs, layer.number_format)
    if factor is not None:
        with contextlib.suppress(ScaleOverflow):
            other = gptq_round(scaled, factor, layer.number_format, clip)
            lower = _error(other, weight, choice.scale, inputs)
            if lower < own:
                return _Piece(other, True, lower, rtn, signal)
    return _Piece(nearest, False, own, rtn, signal)


def _error(
    rounded: Rounded,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    inputs: InputStatistics | None,
) -> float:
    """Squared error of the outputs, or of the weights where there are no inputs."""

    def difference(rows: slice) -> torch.Tensor:
        found = rounded.rows(rows).dequantize()
        if scale is not None:
            found /= scale
        return found.sub_(weight[rows])

    if inputs is None:
        return sum(float(difference(rows).square_().sum()) for rows in row_pieces(weight))
    return inputs.summed_error(weight, difference)


def _report(layer: OutputLayer, pieces: Sequence[_Piece], choice: GroupChoice) -> LinearReport:
    signal = max(sum(piece.signal for piece in pieces), 1e-30)
    own, rtn = sum(p.own for p in pieces) / signal, sum(p.rtn for p in pieces) / signal
    clipped = sum(int((ratio < 1).sum()) for ratio in choice.clips.values())
    return LinearReport(
        name=layer.name,
        quantized=True,
        exponent=None if choice.scale is None else choice.exponent,
        weight_aware=choice.weight_aware,
        fell_back=choice.fell_back,
        clip_share=clipped / sum(piece.rounded.scales.numel() for piece in pieces),
        gptq=any(piece.by_gptq for piece in pieces),
        relative_mse=own,
        sqnr_db=sqnr_db(own),
        rtn_relative_mse=rtn,
        rtn_sqnr_db=sqnr_db(rtn),
    )
