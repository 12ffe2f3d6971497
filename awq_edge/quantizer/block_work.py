"""What is done to one block once its statistics are there: search, fold, round. No forward pass.

    weights, statistics ─► scales and clips of each group ─► folds ─► codes of each linear

All scales of a block are found on its original weights and folded before anything is rounded: a
fold changes the rows of the linear before it, and codes made earlier would be stale.

Each step is a function of its arguments alone, so that an executor may run it anywhere, and again
where it was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from awq_edge.archs import Decoder, ScaleGroup
from awq_edge.errors import ModelError
from awq_edge.layouts import Layout
from awq_edge.quantizer.awq import GroupChoice, clip_group, search_group
from awq_edge.quantizer.folding import fold, realise_scale, tie_channels
from awq_edge.quantizer.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.host_memory import return_free_memory
from awq_edge.quantizer.linear_report import report_linear
from awq_edge.quantizer.phases import PhaseClock
from awq_edge.quantizer.report import LinearReport
from awq_edge.quantizer.rounding import NumberFormat, Rounded, ScaleOverflow, round_to_nearest
from awq_edge.quantizer.scales import Member
from awq_edge.quantizer.statistics import InputStatistics
from awq_edge.quantizer.writer import narrowed, quantized_tensors

Tensors = dict[str, torch.Tensor]
Statistics = Mapping[str, InputStatistics]
Result = TypeVar("Result")


@dataclass(frozen=True)
class BlockOptions:
    """How blocks are quantized and stored. statistics_budget: bytes of one block's statistics.
    propagate_error: later blocks see the outputs of quantized ones. search: AWQ's scales and clips.
    gptq: codes by GPTQ instead of rounding to nearest, on the scaled weights."""

    number_format: NumberFormat
    layout: Layout
    statistics_budget: int
    seed: int
    propagate_error: bool
    search: bool
    gptq: bool


@dataclass(frozen=True)
class BlockTask:
    """What a block's work depends on beside its tensors.

    Picklable. model: names it in errors. obstacles: linears that stay in 16 bits, with the reason.
    storage: dtypes of the block's tensors in the new checkpoint, by name relative to the block.
    """

    model: str
    layer: int
    decoder: Decoder
    options: BlockOptions
    obstacles: Mapping[str, str]
    storage: Mapping[str, torch.dtype]

    @cached_property
    def groups(self) -> list[ScaleGroup]:
        """The scale groups in which something is quantized."""
        groups = self.decoder.scale_groups(self.layer)
        return [g for g in groups if any(name not in self.obstacles for name in g.linears)]

    def members(self, group: ScaleGroup) -> list[str]:
        """The linears of a group that are quantized."""
        return [name for name in group.linears if name not in self.obstacles]

    def group_of(self, linear: str) -> ScaleGroup:
        """The scale group of a linear that is quantized."""
        return next(group for group in self.groups if linear in group.linears)

    @cached_property
    def input_of(self) -> dict[str, str]:
        """The name of the input that each linear reads."""
        inputs = self.decoder.inputs(self.layer).items()
        return {linear: name for name, linears in inputs for linear in linears}

    def members_by_input(self, group: ScaleGroup) -> dict[str, list[str]]:
        """The linears of a group that are quantized, by the input that they read."""
        found: dict[str, list[str]] = {}
        for name in self.members(group):
            found.setdefault(self.input_of[name], []).append(name)
        return found

    def statistics_of(self, group: ScaleGroup, statistics: Statistics) -> Statistics:
        """Those of the group's inputs."""
        names = (self.input_of[linear] for linear in self.members(group))
        return {name: statistics[name] for name in names}

    def full_name(self, name: str) -> str:
        return f"{self.decoder.layer_prefix(self.layer)}.{name}"


@dataclass(frozen=True)
class RoundedLinear:
    """by_gptq: GPTQ's codes are the better ones."""

    rounded: Rounded
    by_gptq: bool


@dataclass(frozen=True)
class BlockOutcome:
    """What became of a block.

    stored: its tensors as the checkpoint holds them, by full name, on the CPU. scales: what was
    folded, by scale group, float32 [in], absent for s = 1. seconds: by phase.
    """

    stored: Tensors
    scales: Mapping[str, torch.Tensor]
    linears: tuple[LinearReport, ...]
    seconds: Mapping[str, float]


class Mapper(Protocol):
    """Calls a function of this module once for each tuple of arguments, in any place and order;
    results in the order of the tuples."""

    def __call__(
        self, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
    ) -> Iterator[Result]: ...


def one_by_one(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
) -> Iterator[Result]:
    """The mapper that does the work here, each when its result is asked for."""
    for each in arguments:
        result = function(*each)
        del each  # what it holds may be dropped before the next
        return_free_memory()
        yield result


def quantize_block(
    task: BlockTask, tensors: Tensors, statistics: Statistics, mapper: Mapper = one_by_one
) -> BlockOutcome:
    """Search, fold, round and pack one block.

    tensors: float32, by name relative to the block; each is taken out once its codes are there.
    statistics: by input, see `Decoder.inputs`. Raises ModelError naming the tensor that cannot be
    stored.
    """
    clock = PhaseClock(next(iter(tensors.values())).device)
    groups = task.groups
    with clock.phase("search"):
        found = mapper(
            search_scale_group,
            [(task, g, _of_group(g, tensors), task.statistics_of(g, statistics)) for g in groups],
        )
        choices = {group.name: choice for group, choice in zip(groups, found, strict=True)}
    parts = [part for group in groups for part in task.members_by_input(group).items()]
    results = mapper(
        round_linears,
        (
            (
                task,
                names,
                {f"{name}.weight": tensors[f"{name}.weight"] for name in names},
                choices,
                statistics[source],
            )
            for source, names in parts
        ),
    )
    reports: dict[str, LinearReport] = {}
    stored: Tensors = {}
    for source, names in parts:
        with clock.phase("round"):
            rounded = next(results)
        for name in names:
            weight = tensors.pop(f"{name}.weight")
            with clock.phase("report"):
                reports[name] = report_linear(
                    task, name, weight, rounded[name], choices, statistics[source]
                )
            with clock.phase("pack"):
                stored |= store_linear(task, name, rounded.pop(name))
            del weight
    with clock.phase("pack"):
        stored |= store_rest(task, tensors, choices)
    linears = tuple(
        reports.get(name) or LinearReport(name=name, quantized=False, reason=task.obstacles[name])
        for name in (linear.name for linear in task.decoder.linears(task.layer))
    )
    scales = {name: choice.scale for name, choice in choices.items() if choice.scale is not None}
    return BlockOutcome(stored, scales, linears, clock.seconds)


def store_linear(task: BlockTask, name: str, linear: RoundedLinear) -> Tensors:
    """A quantized linear's tensors as the checkpoint holds them, by full name, on the CPU."""
    return quantized_tensors(
        task.options.layout, task.full_name(name), linear.rounded, task.options.number_format
    )


def store_rest(task: BlockTask, tensors: Tensors, choices: Mapping[str, GroupChoice]) -> Tensors:
    """What is not quantized, as the checkpoint holds it, by full name, on the CPU.

    tensors: those, before the folds. Raises ModelError for a value that its dtype cannot hold.
    """
    return {
        task.full_name(name): narrowed(
            task.model,
            task.full_name(name),
            fold_block(task, {name: tensor}, choices)[name],
            task.storage[name],
        )
        for name, tensor in tensors.items()
    }


def search_scale_group(
    task: BlockTask, group: ScaleGroup, tensors: Tensors, statistics: Statistics
) -> GroupChoice:
    """Scale and clips of one group. tensors: of the block, by relative name, those of the group and
    what its inverse scale goes into at least."""
    if not task.options.search:
        return GroupChoice(None, {}, 0.0, False, False, {})
    members = {
        name: Member(tensors[f"{name}.weight"], statistics[task.input_of[name]])
        for name in task.members(group)
    }
    if group.kind == "none":
        return clip_group(members, task.options.number_format)
    return search_group(
        members,
        task.options.number_format,
        tie=tie_channels(task.decoder, group),
        realise=realise_scale(task.decoder, group, tensors, task.storage),
        seed=task.options.seed,
    )


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
    inputs: InputStatistics,
) -> dict[str, RoundedLinear]:
    """The codes of the linears of one group that read one input. tensors: their weights at least,
    before the folds, by name relative to the block. Their folds are made here, one linear at a
    time: those of a whole block would be a second block in memory.

    Raises ModelError naming the linear whose scales overflow float16.
    """
    choice = choices[task.group_of(names[0]).name]
    found = {name: _nearest(task, name, tensors, choices) for name in names}
    factor = _gptq_factor(task.options, inputs, choice.scale)
    if factor is None:
        return found
    folded = {name: _folded_weight(task, name, tensors, choices) for name in names}
    return _with_gptq(task, found, folded, factor, choice, inputs)


def _nearest(
    task: BlockTask, name: str, tensors: Tensors, choices: Mapping[str, GroupChoice]
) -> RoundedLinear:
    weight = _folded_weight(task, name, tensors, choices)
    clip = choices[task.group_of(name).name].clips.get(name)
    try:
        return RoundedLinear(round_to_nearest(weight, task.options.number_format, clip), False)
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
    inputs: InputStatistics,
) -> dict[str, RoundedLinear]:
    """GPTQ's codes of linears that read one input, where their output error is smaller.

    weights: after the folds. The rows of all of them go through the columns together.
    """
    number_format = task.options.number_format
    ratios = [choice.clips.get(name) for name in nearest]
    ratio = None
    if any(each is not None for each in ratios):
        ratio = torch.cat(
            [
                torch.ones(nearest[name].rounded.scales.shape, device=factor.device)
                if each is None
                else each
                for name, each in zip(nearest, ratios, strict=True)
            ]
        )
    try:
        rounded = gptq_round(torch.cat(list(weights.values())), factor, number_format, ratio)
    except ScaleOverflow:
        return dict(nearest)
    found = {}
    parts = rounded.split([len(weight) for weight in weights.values()])
    for (name, weight), part in zip(weights.items(), parts, strict=True):
        better = _is_better(part, nearest[name].rounded, weight, choice.scale, inputs)
        found[name] = RoundedLinear(part, True) if better else nearest[name]
    return found


def _of_group(group: ScaleGroup, tensors: Tensors) -> Tensors:
    """The tensors that the work on a group reads."""
    names = {*group.linears, group.previous}
    return {name: t for name, t in tensors.items() if name.rpartition(".")[0] in names}


def _gptq_factor(
    options: BlockOptions, inputs: InputStatistics, scale: torch.Tensor | None
) -> torch.Tensor | None:
    """What GPTQ needs of an input; None without GPTQ, or where G did not fit the budget."""
    if not options.gptq or inputs.gram is None or inputs.tokens == 0:
        return None
    gram = inputs.gram
    return inverse_factor(gram if scale is None else gram / torch.outer(scale, scale))


def _is_better(
    one: Rounded,
    other: Rounded,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    inputs: InputStatistics,
) -> bool:
    """Whether `one` has the smaller output error. weight: what both stand for."""

    def error(rounded: Rounded) -> float:
        def difference(rows: slice) -> torch.Tensor:
            found = rounded.rows(rows).dequantize().sub_(weight[rows])
            return found if scale is None else found.div_(scale)

        return inputs.summed_error(weight, difference)

    return error(one) < error(other)
