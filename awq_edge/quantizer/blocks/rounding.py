"""The rounding of a block's linears: with their folds, to nearest and by GPTQ, the better kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from awq_edge.errors import ModelError
from awq_edge.quantizer.blocks.folding import fold
from awq_edge.quantizer.blocks.task import BlockTask
from awq_edge.quantizer.blocks.weights import Tensors
from awq_edge.quantizer.calibration.statistics import InputStatistics, WeightsOnly
from awq_edge.quantizer.report.linear import RoundedLinear
from awq_edge.quantizer.search.awq import GroupChoice
from awq_edge.quantizer.search.gptq import gptq_round
from awq_edge.quantizer.search.refine import round_refined
from awq_edge.quantizer.search.rounding import Rounded, ScaleOverflow, round_to_nearest


def fold_block(
    task: BlockTask,
    tensors: Tensors,
    choices: Mapping[str, GroupChoice],
    *,
    inverse: bool = False,
) -> Tensors:
    """Tensors of a block, all or some, with every scale folded; `tensors` is left as it was.

    inverse: with every scale taken out again.
    """
    folded = {name: tensor.clone() for name, tensor in tensors.items()}
    for group in task.groups:
        scale = choices[group.name].scale
        if scale is not None:
            fold(task.decoder, group, 1 / scale if inverse else scale, folded)
    return folded


def round_linears(
    task: BlockTask,
    names: Sequence[str],
    tensors: Tensors,
    choices: Mapping[str, GroupChoice],
    inputs: InputStatistics | WeightsOnly,
) -> dict[str, RoundedLinear]:
    """The codes of the linears of one group that read one input. tensors: their weights at least,
    before the folds, by name relative to the block. Their folds are made here, one linear at a
    time: those of a whole block would be a second block in memory.

    Raises ModelError naming the linear whose scales overflow float16.
    """
    choice = choices[task.group_of(names[0]).name]
    rounded = {name: _nearest(task, name, tensors, choices) for name in names}
    factor = inputs.inverse_factor(choice.scale) if task.options.gptq else None
    if factor is not None:
        for batch in task.batches(names):
            nearest = {name: rounded[name] for name in batch}
            folded = {name: _folded_weight(task, name, tensors, choices) for name in batch}
            rounded |= _with_gptq(task, nearest, folded, factor, choice, inputs)
    return rounded


def _nearest(
    task: BlockTask, name: str, tensors: Tensors, choices: Mapping[str, GroupChoice]
) -> RoundedLinear:
    weight = _folded_weight(task, name, tensors, choices)
    clip = choices[task.group_of(name).name].clips.get(name)
    try:
        return RoundedLinear(round_to_nearest(weight, task.number_format(name), clip), False)
    except ScaleOverflow as error:  # by the scale of a linear behind it, which is folded into rows
        raise ModelError(
            f"{task.model}: '{task.full_name(name)}' with its folded scales: {error}; give "
            "--method rtn, which folds none, or more --bits"
        ) from None


def _folded_weight(
    task: BlockTask, name: str, tensors: Tensors, choices: Mapping[str, GroupChoice]
) -> torch.Tensor:
    weight = f"{name}.weight"
    return fold_block(task, {weight: tensors[weight]}, choices)[weight]


def _with_gptq(
    task: BlockTask,
    nearest: Mapping[str, RoundedLinear],
    weights: Tensors,
    factor: torch.Tensor,
    choice: GroupChoice,
    inputs: InputStatistics | WeightsOnly,
) -> dict[str, RoundedLinear]:
    """GPTQ's codes of linears that read one input, where their output error is smaller.

    weights: after the folds. The rows of all of them go through the columns together.
    """
    targets = {name: _target(weight, choice.scale, inputs) for name, weight in weights.items()}
    whole = torch.cat(list(targets.values()))
    try:
        rounded = _codes(task, whole, factor, choice, nearest, inputs)
    except ScaleOverflow:
        return dict(nearest)
    better = {}
    parts = rounded.split([len(weight) for weight in weights.values()])
    for (name, target), part in zip(targets.items(), parts, strict=True):
        errors = [
            output_error(each, target, choice.scale, inputs)
            for each in (part, nearest[name].rounded)
        ]
        wins = errors[0] < errors[1]
        better[name] = RoundedLinear(part, True) if wins else nearest[name]
    return better


def _codes(
    task: BlockTask,
    weight: torch.Tensor,
    factor: torch.Tensor,
    choice: GroupChoice,
    nearest: Mapping[str, RoundedLinear],
    inputs: InputStatistics | WeightsOnly,
) -> Rounded:
    """GPTQ's codes, refined where the method is. weight: the rows of all linears in `nearest`."""
    effort, number_format = task.options.refinement, task.number_format(next(iter(nearest)))
    if effort is None:
        ratios = [
            choice.clips.get(name, torch.ones(linear.rounded.scales.shape, device=weight.device))
            for name, linear in nearest.items()
        ]
        ratio = torch.cat(ratios) if choice.clips else None
        return gptq_round(weight, factor, number_format, ratio)
    gram = inputs.gram
    assert gram is not None  # its factor was made of it
    if choice.scale is not None:
        gram = gram / torch.outer(choice.scale, choice.scale)
    return round_refined(weight, factor, gram, number_format, effort)


def _target(
    weight: torch.Tensor, scale: torch.Tensor | None, inputs: InputStatistics | WeightsOnly
) -> torch.Tensor:
    """`InputStatistics.target` of a weight whose columns are multiplied by s."""
    if scale is None or not inputs.is_paired:  # dividing and multiplying would round the weight
        return inputs.target(weight)
    return inputs.target(weight / scale) * scale


def output_error(
    rounded: Rounded,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    inputs: InputStatistics | WeightsOnly,
) -> float:
    """Squared output error of codes that stand for `weight`, whose columns are multiplied by s."""

    def difference(rows: slice) -> torch.Tensor:
        error = rounded.rows(rows).dequantize().sub_(weight[rows])
        return error if scale is None else error.div_(scale)

    return inputs.summed_error(weight, difference)
