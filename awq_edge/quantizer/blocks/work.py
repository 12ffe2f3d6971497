"""The work on one task once its statistics are there. No forward pass.

    weights, statistics ─► search: scales and clips of each group ─► fold ─► round ─► pack

All scales are found on the original weights and folded before anything is rounded: a fold changes
the rows of the linear before it, and codes made earlier would be stale.

Each step is a function of its arguments alone, so that it may run anywhere, and again where it was
lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from awq_edge.errors import ModelError
from awq_edge.model.archs import ScaleGroup
from awq_edge.quantizer.blocks.folding import fold, realise_scale, tie_channels
from awq_edge.quantizer.blocks.task import (
    BlockTask,
    Observed,
    OutputLayerTask,
    Statistics,
)
from awq_edge.quantizer.blocks.weights import Tensors
from awq_edge.quantizer.calibration.statistics import InputStatistics, WeightsOnly
from awq_edge.quantizer.checkpoint.writer import narrowed, quantized_tensors
from awq_edge.quantizer.host_memory import return_free_memory
from awq_edge.quantizer.phases import PhaseClock
from awq_edge.quantizer.report.linear import RoundedLinear, report_linear
from awq_edge.quantizer.report.schema import LinearReport
from awq_edge.quantizer.search.awq import UNSCALED, GroupChoice, clip_group, search_group
from awq_edge.quantizer.search.gptq import gptq_round
from awq_edge.quantizer.search.refine import round_refined
from awq_edge.quantizer.search.rounding import Rounded, ScaleOverflow, concatenate, round_to_nearest
from awq_edge.quantizer.search.scales import Member, sample_rows, search_scales

Result = TypeVar("Result")


@dataclass(frozen=True)
class BlockOutcome:
    """The result of a task.

    stored: its tensors as the checkpoint holds them, by full name, on the CPU. codes: of a block
    whose outputs are propagated, by linear, where they were made. scales: what was folded, by scale
    group, float32 [in], absent for s = 1. seconds: by phase.
    """

    stored: Tensors
    codes: Mapping[str, Rounded]
    scales: Mapping[str, torch.Tensor]
    linears: tuple[LinearReport, ...]
    seconds: Mapping[str, float]


class Run(Protocol):
    """Calls a function of this module once for each tuple of arguments, in any place and order;
    results in the order of the tuples."""

    def __call__(
        self, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
    ) -> Iterator[Result]: ...


def run_here(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
) -> Iterator[Result]:
    """Call in this process, each when its result is asked for."""
    for each in arguments:
        result = function(*each)
        del each  # what it holds may be dropped before the next
        return_free_memory()
        yield result


def quantize_block(
    task: BlockTask, tensors: Tensors, statistics: Statistics, run: Run = run_here
) -> BlockOutcome:
    """Search, fold, round and pack.

    tensors: float32, by name relative to the block; each is taken out once its codes are there.
    statistics: by input, see `BlockTask.inputs`. run: the searches and roundings, which do not
    depend on each other. Raises ModelError naming the tensor that cannot be stored.
    """
    devices = [inputs.device for inputs in statistics.values()]
    clock = PhaseClock(devices[0] if devices else torch.device("cpu"))
    with clock.phase("search"):
        choices = _search(task, tensors, statistics, run)
    together = [each for group in task.groups for each in task.members_by_input(group).items()]
    roundings = run(
        round_linears,
        (
            (task, names, _weights(tensors, names), choices, statistics[source])
            for source, names in together
        ),
    )
    stored: Tensors = {}
    kept: dict[str, Rounded] = {}
    reports: dict[str, LinearReport] = {}
    for source, names in together:
        with clock.phase("round"):
            rounded = next(roundings)
        for linear, pieces in task.pieces_of(names).items():
            weights = [tensors.pop(f"{piece}.weight") for piece in pieces]
            codes = [rounded.pop(piece) for piece in pieces]
            with clock.phase("report"):
                reports[linear] = report_linear(
                    task, pieces, weights, codes, choices, statistics[source]
                )
            with clock.phase("pack"):
                whole = concatenate([each.rounded for each in codes])
                stored |= quantized_tensors(
                    task.options.layout,
                    task.full_name(pieces[0]),
                    whole,
                    task.number_format(pieces[0]),
                )
            if task.options.propagates and not isinstance(task, OutputLayerTask):
                kept[linear] = whole
            del weights, codes, whole
    scales = {name: choice.scale for name, choice in choices.items() if choice.scale is not None}
    with clock.phase("pack"):
        for name in task.unquantized(scales):
            folded = fold_block(task, {name: tensors[name]}, choices)[name]
            full = task.full_name(name)
            stored[full] = narrowed(task.model, full, folded, task.storage[name])
    linears = tuple(
        reports.get(name) or LinearReport(name=name, quantized=False, reason=task.obstacles[name])
        for name in task.linears
    )
    return BlockOutcome(stored, kept, scales, linears, clock.seconds)


def _search(
    task: BlockTask, tensors: Tensors, statistics: Statistics, run: Run
) -> dict[str, GroupChoice]:
    """Scale and clips of every group; s = 1 where the method searches none."""
    names = [group.name for group in task.groups]
    if not task.options.search:
        return dict.fromkeys(names, UNSCALED)
    arguments = [
        (task, group, _of_group(group, tensors), task.statistics_of(group, statistics))
        for group in task.groups
    ]
    search = search_scale_group if task.options.refinement is None else choose_scale
    return dict(zip(names, run(search, arguments), strict=True))


def _of_group(group: ScaleGroup, tensors: Tensors) -> Tensors:
    """The tensors that the search of a group reads."""
    names = {*group.linears, group.previous}
    return {name: t for name, t in tensors.items() if name.rpartition(".")[0] in names}


def _weights(tensors: Tensors, names: Sequence[str]) -> Tensors:
    return {f"{name}.weight": tensors[f"{name}.weight"] for name in names}


def search_scale_group(
    task: BlockTask, group: ScaleGroup, tensors: Tensors, statistics: Observed
) -> GroupChoice:
    """Scale and clips of one group. tensors: of the block, by relative name, those of the group and
    what its inverse scale goes into at least."""
    members = _members(task, group, tensors, statistics)
    if group.kind == "none":
        return clip_group(members, task.group_format(group))
    return search_group(
        members,
        task.group_format(group),
        tie=tie_channels(task.decoder, group),
        realise=realise_scale(task.decoder, group, tensors, task.storage),
        seed=task.options.seed,
    )


def _members(
    task: BlockTask, group: ScaleGroup, tensors: Tensors, statistics: Observed
) -> dict[str, Member]:
    return {
        name: Member(tensors[f"{name}.weight"], statistics[task.input_of[name]])
        for name in task.members(group)
    }


def choose_scale(
    task: BlockTask, group: ScaleGroup, tensors: Tensors, statistics: Observed
) -> GroupChoice:
    """The best scale of AWQ's grid, or none where GPTQ leaves less without it; no clips, since it
    searches its ranges. On a sample of the rows; arguments as of `search_scale_group`."""
    if group.kind == "none":
        return UNSCALED
    choice = search_scales(
        list(_members(task, group, tensors, statistics).values()),
        task.group_format(group),
        tie=tie_channels(task.decoder, group),
        seed=task.options.seed,
    )
    if choice.exponent == 0 and not choice.weight_aware:  # s = 1
        return UNSCALED
    scale = realise_scale(task.decoder, group, tensors, task.storage)(choice.scale)
    losses = [
        sum(
            _sampled_loss(task, names, tensors, each, statistics[source])
            for source, names in task.members_by_input(group).items()
        )
        for each in (None, scale)
    ]
    if losses[1] < losses[0]:
        return GroupChoice(scale, {}, choice.exponent, choice.weight_aware)
    return replace(UNSCALED, fell_back=True)


def _sampled_loss(
    task: BlockTask,
    names: Sequence[str],
    tensors: Tensors,
    scale: torch.Tensor | None,
    inputs: InputStatistics,
) -> float:
    """The output error that GPTQ with searched ranges leaves in some rows of linears that read one
    input; without G that of plain rounding."""
    weight = torch.cat([tensors[f"{name}.weight"] for name in names])
    weight = sample_rows(weight, task.options.seed)[0]
    target = inputs.target(weight)
    if scale is not None:
        target = target * scale
    number_format, factor = task.number_format(names[0]), inputs.inverse_factor(scale)
    effort = task.options.refinement
    try:
        if factor is None or effort is None:
            rounded = round_to_nearest(target, number_format)
        else:
            rounded = gptq_round(target, factor, number_format, range_steps=effort.range_steps)
    except ScaleOverflow:
        return math.inf
    return _output_error(rounded, target, scale, inputs)


def fold_block(task: BlockTask, tensors: Tensors, choices: Mapping[str, GroupChoice]) -> Tensors:
    """Tensors of a block, all or some, with every scale folded; `tensors` is left as it was."""
    folded = {name: tensor.clone() for name, tensor in tensors.items()}
    for group in task.groups:
        scale = choices[group.name].scale
        if scale is not None:
            fold(task.decoder, group, scale, folded)
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
            _output_error(each, target, choice.scale, inputs)
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


def _output_error(
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
