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
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import torch

from awq_edge.model.archs import ScaleGroup
from awq_edge.quantizer.blocks.folding import realise_scale, tie_channels
from awq_edge.quantizer.blocks.rounding import fold_block, output_error, round_linears
from awq_edge.quantizer.blocks.task import (
    BlockTask,
    Observed,
    OutputLayerTask,
    Statistics,
)
from awq_edge.quantizer.blocks.weights import Tensors
from awq_edge.quantizer.calibration.statistics import InputStatistics
from awq_edge.quantizer.checkpoint.writer import narrowed, quantized_tensors
from awq_edge.quantizer.host_memory import return_free_memory
from awq_edge.quantizer.phases import PhaseClock
from awq_edge.quantizer.report.linear import RoundedLinear, report_linear
from awq_edge.quantizer.report.schema import LinearReport
from awq_edge.quantizer.search.awq import UNSCALED, GroupChoice, clip_group, search_group
from awq_edge.quantizer.search.gptq import gptq_round
from awq_edge.quantizer.search.rounding import Rounded, ScaleOverflow, concatenate, round_to_nearest
from awq_edge.quantizer.search.scales import Member, sample_rows, search_scales

Result = TypeVar("Result")
# (current weights of the block, number of a stage) -> statistics of its inputs.
ObserveStage: TypeAlias = Callable[[Tensors, int], Mapping[str, InputStatistics]]


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
    task: BlockTask,
    tensors: Tensors,
    statistics: Statistics,
    observe_stage: ObserveStage | None = None,
    run: Run = run_here,
) -> BlockOutcome:
    """Search, fold, round and pack.

    tensors: float32, by name relative to the block; each is taken out once its codes are there.
    statistics: by input, see `BlockTask.inputs`. observe_stage: statistics of the stages after the
    first (`BlockTask.stages`), for which the weights of those before are given as they became. run:
    the searches and the roundings of a stage, which do not depend on each other. Raises ModelError
    naming the tensor that cannot be stored.
    """
    devices = [inputs.device for inputs in statistics.values()]
    clock = PhaseClock(devices[0] if devices else torch.device("cpu"))
    with clock.phase("search"):
        choices = _search(task, tensors, statistics, run)
    current = dict(tensors) if len(task.stages) > 1 else {}
    stored: Tensors = {}
    kept: dict[str, Rounded] = {}
    reports: dict[str, LinearReport] = {}
    for source, names, rounded in _rounded(
        task, tensors, current, statistics, choices, observe_stage, run, clock
    ):
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
            if current:
                weight = f"{linear}.weight"
                current |= fold_block(task, {weight: whole.dequantize()}, choices, inverse=True)
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


def _rounded(
    task: BlockTask,
    tensors: Tensors,
    current: Tensors,
    statistics: Statistics,
    choices: Mapping[str, GroupChoice],
    observe_stage: ObserveStage | None,
    run: Run,
    clock: PhaseClock,
) -> Iterator[tuple[str, list[str], dict[str, RoundedLinear]]]:
    """Each input with the linears that read it and their codes, stage by stage.

    current: the weights that a stage is observed with; the caller puts in what was yielded.
    """
    together = {
        source: names
        for group in task.groups
        for source, names in task.members_by_input(group).items()
    }
    for number, stage in enumerate(task.stages):
        if number and observe_stage is not None:
            observed = cast("dict[str, InputStatistics]", statistics)
            for source in stage:
                del observed[source]  # before the new ones take their memory
            with clock.phase("forward"):
                observed |= observe_stage(current, number)
        sources = [source for source in together if source in stage]
        roundings = run(
            round_linears,
            (
                (task, together[each], _weights(tensors, together[each]), choices, statistics[each])
                for each in sources
            ),
        )
        for source in sources:
            with clock.phase("round"):
                rounded = next(roundings)
            yield source, together[source], rounded


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
    return output_error(rounded, target, scale, inputs)
