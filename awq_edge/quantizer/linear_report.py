"""What the report says of a quantized linear: its output errors beside those of other formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from awq_edge.quantizer.awq import GroupChoice, output_error
from awq_edge.quantizer.folding import row_scale
from awq_edge.quantizer.nf4 import nf4_fake_quantize
from awq_edge.quantizer.report import LinearReport, sqnr_db
from awq_edge.quantizer.statistics import InputStatistics

if TYPE_CHECKING:
    from awq_edge.quantizer.block_work import BlockTask, RoundedLinear


def report_linear(
    task: BlockTask,
    name: str,
    weight: torch.Tensor,
    linear: RoundedLinear,
    choices: Mapping[str, GroupChoice],
    inputs: InputStatistics,
) -> LinearReport:
    """Errors of what is stored, in the space of the original weight: rows and columns of the folds
    undone. weight: float32 [out, in], before the folds."""
    group = task.group_of(name)
    choice = choices[group.name]
    multiplied = [
        row_scale(task.decoder, other, scale, len(weight))
        for other in task.groups
        if (scale := choices[other.name].scale) is not None
        and other.previous == name
        and other.kind != "norm"
    ]

    def own_difference(rows: slice) -> torch.Tensor:
        unfolded = linear.rounded.rows(rows).dequantize()
        if choice.scale is not None:
            unfolded /= choice.scale
        for scale in multiplied:
            unfolded *= scale[rows, None]
        return unfolded.sub_(weight[rows])

    choice_report = LinearReport(
        name=name,
        quantized=True,
        group=group.name,
        exponent=None if choice.scale is None else choice.exponent,
        weight_aware=choice.weight_aware,
        fell_back=choice.fell_back,
    )
    signal = inputs.summed_error(weight, lambda rows: weight[rows])
    if inputs.tokens == 0 or (signal == 0 and weight.any()):
        return choice_report  # an expert that was (almost) never chosen: no outputs to compare
    signal = max(signal, 1e-30)
    own = inputs.summed_error(weight, own_difference) / signal
    rtn_error = choice.rtn_errors.get(name)
    if rtn_error is None:
        rtn_error = output_error(weight, None, None, inputs, task.options.number_format)
    rtn = rtn_error / signal
    nf4 = inputs.summed_error(weight, lambda rows: _nf4_difference(weight[rows])) / signal
    clip = choice.clips.get(name)
    return choice_report.model_copy(
        update={
            "clip_share": 0.0 if clip is None else float((clip < 1).float().mean()),
            "gptq": linear.by_gptq,
            "relative_mse": own,
            "sqnr_db": sqnr_db(own),
            "rtn_relative_mse": rtn,
            "rtn_sqnr_db": sqnr_db(rtn),
            "nf4_relative_mse": nf4,
            "nf4_sqnr_db": sqnr_db(nf4),
        }
    )


def _nf4_difference(weight: torch.Tensor) -> torch.Tensor:
    return nf4_fake_quantize(weight).sub_(weight)
