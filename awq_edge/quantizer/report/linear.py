"""The report of a quantized linear: its output errors beside those of other formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from awq_edge.quantizer.blocks.folding import row_scale
from awq_edge.quantizer.blocks.task import BlockTask
from awq_edge.quantizer.calibration.statistics import InputStatistics, WeightsOnly
from awq_edge.quantizer.report.schema import LinearReport, sqnr_db
from awq_edge.quantizer.search.awq import GroupChoice
from awq_edge.quantizer.search.nf4 import nf4_fake_quantize
from awq_edge.quantizer.search.rounding import Rounded, fake_quantize


@dataclass(frozen=True)
class RoundedLinear:
    """by_gptq: GPTQ's codes are the better ones."""

    rounded: Rounded
    by_gptq: bool


@dataclass(frozen=True)
class _Errors:
    """Squared errors over all tokens: of the stored codes, of plain rounding, of NF4; and the
    squared output itself."""

    own: float
    rtn: float
    nf4: float
    signal: float


def report_linear(
    task: BlockTask,
    pieces: Sequence[str],
    weights: Sequence[torch.Tensor],
    codes: Sequence[RoundedLinear],
    choices: Mapping[str, GroupChoice],
    inputs: InputStatistics | WeightsOnly,
) -> LinearReport:
    """Errors of a linear as it is stored, in the space of the original weight: rows and columns of
    the folds undone. pieces, weights, codes: of its rows, one a piece. weights: float32 [rows, in],
    before the folds."""
    group = task.group_of(pieces[0])
    choice = choices[group.name]
    number_format = task.number_format(pieces[0])
    report = LinearReport(
        name=task.linear_of(pieces[0]),
        quantized=True,
        bits=number_format.bits,
        group_size=number_format.group_size,
        group=group.name if task.options.calibrated else None,
        exponent=None if choice.scale is None else choice.exponent,
        weight_aware=choice.weight_aware,
        fell_back=choice.fell_back,
    )
    errors = [
        _piece_errors(task, piece, weight, linear, choices, inputs)
        for piece, weight, linear in zip(pieces, weights, codes, strict=True)
    ]
    signal = sum(each.signal for each in errors)
    if inputs.tokens == 0 or (signal == 0 and any(bool(weight.any()) for weight in weights)):
        return report  # an expert that was (almost) never chosen: no outputs to compare
    signal = max(signal, 1e-30)
    own, rtn, nf4 = (
        sum(getattr(each, name) for each in errors) / signal for name in ("own", "rtn", "nf4")
    )
    clipped = sum(int((choice.clips[p] < 1).sum()) for p in pieces if p in choice.clips)
    return report.model_copy(
        update={
            "clip_share": clipped / sum(each.rounded.scales.numel() for each in codes),
            "gptq": any(each.by_gptq for each in codes),
            "relative_mse": own,
            "sqnr_db": sqnr_db(own),
            "rtn_relative_mse": rtn,
            "rtn_sqnr_db": sqnr_db(rtn),
            "nf4_relative_mse": nf4,
            "nf4_sqnr_db": sqnr_db(nf4),
        }
    )


def _piece_errors(
    task: BlockTask,
    name: str,
    weight: torch.Tensor,
    linear: RoundedLinear,
    choices: Mapping[str, GroupChoice],
    inputs: InputStatistics | WeightsOnly,
) -> _Errors:
    choice = choices[task.group_of(name).name]
    multiplied = [
        row_scale(task.decoder, other, scale, len(weight))
        for other in task.groups
        if (scale := choices[other.name].scale) is not None
        and other.previous == name
        and other.kind != "norm"
    ]

    target = inputs.target(weight)

    def own_difference(rows: slice) -> torch.Tensor:
        unfolded = linear.rounded.rows(rows).dequantize()
        if choice.scale is not None:
            unfolded /= choice.scale
        for scale in multiplied:
            unfolded *= scale[rows, None]
        return unfolded.sub_(target[rows])

    own = inputs.summed_error(weight, own_difference)
    rtn = choice.rtn_errors.get(name)
    if rtn is None:
        is_plain = choice.scale is None and not multiplied and not linear.by_gptq
        if is_plain and name not in choice.clips:
            rtn = own
        else:
            form = task.number_format(name)
            rtn = inputs.summed_error(
                weight, lambda rows: fake_quantize(weight[rows], form).sub_(target[rows])
            )
    nf4 = inputs.summed_error(
        weight, lambda rows: nf4_fake_quantize(weight[rows]).sub_(target[rows])
    )
    signal = inputs.summed_error(weight, lambda rows: target[rows])
    return _Errors(own, rtn, nf4, signal)
