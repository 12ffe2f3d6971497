"""What is done to one block once its statistics are there: search, fold, round. No forward pass.

    weights, statistics ─► scales and clips of each group ─► folds ─► codes of each linear

All scales of a block are found on its original weights and folded before anything is rounded: a
fold changes the rows of the linear before it, and codes made earlier would be stale.

Each step is a function of its arguments alone, so that an executor may run it anywhere, and again
where it was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from awq_edge.archs import Decoder, Linear, ScaleGroup
from awq_edge.errors import ModelError
from awq_edge.layouts import Layout
from awq_edge.quantizer.awq import GroupChoice, clip_group, output_error, search_group
from awq_edge.quantizer.folding import fold, realise_scale, row_scale, tie_channels
from awq_edge.quantizer.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.nf4 import nf4_fake_quantize
from awq_edge.quantizer.phases import PhaseClock
from awq_edge.quantizer.report import LinearReport, sqnr_db
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
        self, function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Result]: ...


def one_by_one(
    function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]]
) -> list[Result]:
    """The mapper that does the work here and now."""
    return [function(*each) for each in arguments]


def quantize_block(
    task: BlockTask, tensors: Tensors, statistics: Statistics, mapper: Mapper = one_by_one
) -> BlockOutcome:
    """Search, fold, round and pack one block.

    tensors: float32, by name relative to the block. statistics: by input, see `Decoder.inputs`.
    Raises ModelError naming the tensor that cannot be stored.
    """
    clock = PhaseClock(next(iter(tensors.values())).device)
    groups = task.groups
    with clock.phase("search"):
        found = mapper(
            search_scale_group,
            [(task, g, _of_group(g, tensors), task.statistics_of(g, statistics)) for g in groups],
        )
        choices = {group.name: choice for group, choice in zip(groups, found, strict=True)}
    folded = fold_block(task, tensors, choices)
    with clock.phase("round"):
        parts = mapper(
            round_linears,
            [
                (
                    task,
                    names,
                    {f"{name}.weight": folded[f"{name}.weight"] for name in names},
                    choices[group.name],
                    statistics[source],
                )
                for group in groups
                for source, names in task.members_by_input(group).items()
            ],
        )
        rounded = {name: linear for part in parts for name, linear in part.items()}
    with clock.phase("report"):
        linears = tuple(
            report_linear(task, linear, tensors, rounded, choices, statistics)
            for linear in task.decoder.linears(task.layer)
        )
    with clock.phase("pack"):
        stored = store_block(task, folded, rounded)
    scales = {name: choice.scale for name, choice in choices.items() if choice.scale is not None}
    return BlockOutcome(stored, scales, linears, clock.seconds)


def store_block(task: BlockTask, folded: Tensors, rounded: Mapping[str, RoundedLinear]) -> Tensors:
    """The block's tensors as the checkpoint holds them, by full name, on the CPU.

    Raises ModelError for a value that its dtype cannot hold.
    """
    found: Tensors = {}
    for name, tensor in folded.items():
        linear = name.removesuffix(".weight")
        if name.endswith(".weight") and linear in rounded:
            found |= quantized_tensors(
                task.options.layout,
                task.full_name(linear),
                rounded[linear].rounded,
                task.options.number_format,
            )
        else:
            found[task.full_name(name)] = narrowed(
                task.model, task.full_name(name), tensor, task.storage[name]
            )
    return found


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
    """The block's tensors with every scale folded; `tensors` is left as it was."""
    folded = dict(tensors)
    for group in task.groups:
        scale = choices[group.name].scale
        if scale is not None:
            fold(task.decoder, group, scale, folded)
    return folded


def round_linears(
    task: BlockTask,
    names: Sequence[str],
    folded: Tensors,
    choice: GroupChoice,
    inputs: InputStatistics,
) -> dict[str, RoundedLinear]:
    """The codes of the linears of one group that read one input. folded: their weights, by name
    relative to the block. choice: of their group.

    Raises ModelError naming the linear whose scales overflow float16.
    """
    number_format = task.options.number_format
    found: dict[str, RoundedLinear] = {}
    for name in names:
        try:
            nearest = round_to_nearest(
                folded[f"{name}.weight"], number_format, choice.clips.get(name)
            )
        except ScaleOverflow as error:
            raise ModelError(f"{task.model}: '{task.full_name(name)}': {error}") from None
        found[name] = RoundedLinear(nearest, False)
    factor = _gptq_factor(task.options, inputs, choice.scale)
    return found if factor is None else _with_gptq(task, found, folded, factor, choice, inputs)


def _with_gptq(
    task: BlockTask,
    nearest: Mapping[str, RoundedLinear],
    folded: Tensors,
    factor: torch.Tensor,
    choice: GroupChoice,
    inputs: InputStatistics,
) -> dict[str, RoundedLinear]:
    """GPTQ's codes of linears that read one input, where their output error is smaller.

    The rows of all of them go through the columns together.
    """
    number_format = task.options.number_format
    weights = {name: folded[f"{name}.weight"] for name in nearest}
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


def report_linear(
    task: BlockTask,
    linear: Linear,
    tensors: Tensors,
    rounded: Mapping[str, RoundedLinear],
    choices: Mapping[str, GroupChoice],
    statistics: Statistics,
) -> LinearReport:
    """Errors of what is stored, in the space of the original weight: rows and columns of the folds
    undone. tensors: of the block, before the folds."""
    name = linear.name
    if name in task.obstacles:
        return LinearReport(name=name, quantized=False, reason=task.obstacles[name])
    groups = task.groups
    group = next(g for g in groups if name in g.linears)
    choice, inputs = choices[group.name], statistics[task.input_of[name]]
    weight = tensors[f"{name}.weight"]
    unfolded = rounded[name].rounded.dequantize()
    if choice.scale is not None:
        unfolded /= choice.scale
    for other in groups:
        scale = choices[other.name].scale
        if other.previous == name and other.kind != "norm" and scale is not None:
            unfolded *= row_scale(task.decoder, other, scale, len(unfolded))[:, None]
    choice_report = LinearReport(
        name=name,
        quantized=True,
        group=group.name,
        exponent=None if choice.scale is None else choice.exponent,
        weight_aware=choice.weight_aware,
        fell_back=choice.fell_back,
    )
    signal = float(inputs.errors(weight).sum())
    if inputs.tokens == 0 or (signal == 0 and weight.any()):
        return choice_report  # an expert that was (almost) never chosen: no outputs to compare
    signal = max(signal, 1e-30)
    own = float(inputs.errors(unfolded - weight).sum()) / signal
    rtn_error = choice.rtn_errors.get(name)
    if rtn_error is None:
        rtn_error = output_error(weight, None, None, inputs, task.options.number_format)
    rtn = rtn_error / signal
    nf4 = float(inputs.errors(nf4_fake_quantize(weight) - weight).sum()) / signal
    clip = choice.clips.get(name)
    return choice_report.model_copy(
        update={
            "clip_share": 0.0 if clip is None else float((clip < 1).float().mean()),
            "gptq": rounded[name].by_gptq,
            "relative_mse": own,
            "sqnr_db": sqnr_db(own),
            "rtn_relative_mse": rtn,
            "rtn_sqnr_db": sqnr_db(rtn),
            "nf4_relative_mse": nf4,
            "nf4_sqnr_db": sqnr_db(nf4),
        }
    )


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
        difference = rounded.dequantize() - weight
        if scale is not None:
            difference /= scale
        return float(inputs.errors(difference).sum())

    return error(one) < error(other)
