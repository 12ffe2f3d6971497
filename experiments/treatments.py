"""What is done to the weights of a block: the quantizer's methods, parts of them, and the analysis
methods of the AWQ paper. The result is dequantized, in float32.

    mixed          round to nearest, with a share of the input channels kept in 16 bits, chosen by
                   mean|x|, by mean|w|, or at random (the paper's table 1). The ranges of the groups
                   are those of the whole weight.
    awq-fixed-s    round W s to nearest and divide by s, with one s for the same share of channels,
                   those of the largest mean|x|, and 1 for the others (table 2).
    awq-scale      AWQ without its clip search; awq-clip: without its scales.
    w8a8           8 bits a weight, and activations in 8 bits too; smoothquant: after its migration.

Source: Lin et al. 2023 (arXiv 2306.00978).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from awq_edge.model.archs import ScaleGroup
from awq_edge.quantizer.blocks.rounding import fold_block, round_linears
from awq_edge.quantizer.blocks.task import BlockTask, Observed
from awq_edge.quantizer.blocks.weights import Tensors
from awq_edge.quantizer.blocks.work import search_scale_group
from awq_edge.quantizer.report.linear import RoundedLinear
from awq_edge.quantizer.search.awq import UNSCALED, GroupChoice, output_error
from awq_edge.quantizer.search.clipping import search_clips
from awq_edge.quantizer.search.nf4 import BITS_PER_WEIGHT as NF4_BITS
from awq_edge.quantizer.search.nf4 import nf4_fake_quantize
from awq_edge.quantizer.search.rounding import NumberFormat, NumberFormats, fake_quantize
from experiments.smoothquant import Peaks, smooth_block, w8a8_block

Method = Literal[
    "none",
    "rtn",
    "mixed-activation",
    "mixed-weight",
    "mixed-random",
    "awq-fixed-s",
    "awq-scale",
    "awq-clip",
    "awq",
    "gptq",
    "awq+gptq",
    "nf4",
    "w8a8",
    "smoothquant",
]
_MIXED = ("mixed-activation", "mixed-weight", "mixed-random")
_GPTQ = ("gptq", "awq+gptq")
_SEARCHED = ("mixed-activation", "awq-fixed-s", "awq-scale", "awq-clip", "awq", *_GPTQ)
_CALIBRATED = (*_SEARCHED, "smoothquant")
_W8A8 = ("w8a8", "smoothquant")
UNCODED: tuple[Method, ...] = ("none", "nf4", "w8a8", "smoothquant")  # without bits and groups


@dataclass(frozen=True)
class Treatment:
    """A method with its format.

    bits, group_size: of all but UNCODED; group_size None: one group a row. share: of the input
    channels that mixed keeps and awq-fixed-s scales. s: of awq-fixed-s. seed: draws the
    channels of mixed-random.
    """

    method: Method
    bits: int = 4
    group_size: int | None = 128
    share: float = 0.01
    s: float = 1.0
    seed: int = 0

    @property
    def is_calibrated(self) -> bool:
        """Whether the calibration text has any influence."""
        return self.method in _CALIBRATED

    @property
    def rounds_activations(self) -> bool:
        """Whether the linears' inputs are in 8 bits too."""
        return self.method in _W8A8

    def bits_per_weight(self, in_features: int) -> float:
        """Bits of a weight with its share of scales (16 bits) and zero points (`bits`)."""
        if self.method == "none":
            return 16.0
        if self.method == "nf4":
            return NF4_BITS
        if self.method in _W8A8:
            return 8 + 16 / in_features
        coded = self.bits + (16 + self.bits) / (self.group_size or in_features)
        if self.method in _MIXED:
            # The kept channels have no codes; their groups keep their scales.
            kept = channel_count(self.share, in_features) / in_features
            coded += kept * (16 - self.bits)
        return coded


def treat_block(
    treatment: Treatment,
    task: BlockTask,
    tensors: Tensors,
    statistics: Observed,
    peaks: Peaks | None = None,
) -> Tensors:
    """All tensors of a block with the treated weights in place: float32, by relative name.

    tensors, statistics: as recorded; `tensors` is left as it was. The columns of every weight are
    a multiple of the group. peaks: max|x| of each linear's input, for smoothquant.
    """
    if treatment.method == "none":
        return dict(tensors)
    if treatment.method == "w8a8":
        return w8a8_block(task, tensors)
    if treatment.method == "smoothquant":
        assert peaks is not None
        return w8a8_block(task, smooth_block(task, tensors, peaks))
    if treatment.method in ("rtn", "awq-scale", "awq-clip", "awq", *_GPTQ):
        return _by_the_quantizer(treatment, task, tensors, statistics)
    treated = dict(tensors)
    for group in task.groups:
        for name in task.members(group):
            weight = tensors[f"{name}.weight"]
            mean_abs = statistics[task.input_of[name]].mean_abs
            treated[f"{name}.weight"] = _directly(treatment, task.full_name(name), weight, mean_abs)
    return treated


def chosen_channels(
    treatment: Treatment, name: str, weight: torch.Tensor, mean_abs: torch.Tensor
) -> torch.Tensor:
    """Input channels that mixed keeps or awq-fixed-s scales: int64 [share of in].

    name: of the linear, so that mixed-random draws others for each. weight: float32 [out, in].
    mean_abs: mean|x|, float32 [in].
    """
    count = channel_count(treatment.share, weight.shape[1])
    if treatment.method == "mixed-random":
        seed = zlib.crc32(f"{treatment.seed}:{name}".encode())
        random = torch.Generator().manual_seed(seed)
        return torch.randperm(weight.shape[1], generator=random)[:count].to(weight.device)
    score = weight.abs().mean(dim=0) if treatment.method == "mixed-weight" else mean_abs
    return torch.topk(score, count).indices


def channel_count(share: float, in_features: int) -> int:
    """A share of the channels, at least one."""
    return max(1, round(share * in_features))


def fixed_scale(treatment: Treatment, weight: torch.Tensor, mean_abs: torch.Tensor) -> torch.Tensor:
    """s of awq-fixed-s per input channel: float32 [in]."""
    scale = torch.ones(weight.shape[1], device=weight.device)
    scale[chosen_channels(treatment, "", weight, mean_abs)] = treatment.s
    return scale


def number_format(treatment: Treatment, in_features: int) -> NumberFormat:
    """The format of a weight with `in_features` columns."""
    return NumberFormat(treatment.bits, treatment.group_size or in_features, "asymmetric")


def _by_the_quantizer(
    treatment: Treatment, task: BlockTask, tensors: Tensors, statistics: Observed
) -> Tensors:
    """Search, fold and round with the quantizer's own functions."""
    tasks, choices = {}, {}
    for group in task.groups:
        columns = tensors[f"{task.members(group)[0]}.weight"].shape[1]
        options = replace(
            task.options,
            formats=NumberFormats(number_format(treatment, columns)),
            search=treatment.method in ("awq-scale", "awq", "awq+gptq"),
            gptq=treatment.method in _GPTQ,
        )
        tasks[group.name] = replace(task, options=options)
        choices[group.name] = _choose(treatment, tasks[group.name], group, tensors, statistics)
    folded = fold_block(task, tensors, choices)
    rounded: dict[str, RoundedLinear] = {}
    for group in task.groups:
        its_task = tasks[group.name]
        for source, names in its_task.members_by_input(group).items():
            rounded |= round_linears(its_task, names, tensors, choices, statistics[source])
    for name, linear in rounded.items():
        folded[f"{name}.weight"] = linear.rounded.dequantize()
    return folded


def _choose(
    treatment: Treatment,
    task: BlockTask,
    group: ScaleGroup,
    tensors: Tensors,
    statistics: Observed,
) -> GroupChoice:
    if not task.options.search and treatment.method != "awq-clip":
        return UNSCALED
    own = task.statistics_of(group, statistics)
    if treatment.method == "awq-scale":
        return _without_clips(
            search_scale_group(task, group, tensors, own), task, group, tensors, own
        )
    if treatment.method == "awq-clip":
        return GroupChoice(None, _clips(task, group, tensors, own), 0.0, False, False, {})
    return search_scale_group(task, group, tensors, own)


def _without_clips(
    choice: GroupChoice,
    task: BlockTask,
    group: ScaleGroup,
    tensors: Tensors,
    statistics: Observed,
) -> GroupChoice:
    """The scale alone, and none where it is worse than round-to-nearest without its clips."""

    def error(scale: torch.Tensor | None) -> float:
        form = task.group_format(group)
        return sum(
            output_error(
                tensors[f"{name}.weight"], scale, None, statistics[task.input_of[name]], form
            )
            for name in task.members(group)
        )

    if choice.scale is not None and error(choice.scale) < error(None):
        return replace(choice, clips={})
    return GroupChoice(None, {}, 0.0, False, choice.scale is not None, {})


def _clips(
    task: BlockTask, group: ScaleGroup, tensors: Tensors, statistics: Observed
) -> Mapping[str, torch.Tensor]:
    """Clips without a scale, of the linears whose whole error they lower."""
    form = task.group_format(group)
    found = {}
    for name in task.members(group):
        weight, inputs = tensors[f"{name}.weight"], statistics[task.input_of[name]]
        clip = search_clips(weight, inputs.diagonal_blocks(form.group_size), form)
        plain = output_error(weight, None, None, inputs, form)
        if output_error(weight, None, clip, inputs, form) < plain:
            found[name] = clip
    return found


def _directly(
    treatment: Treatment, name: str, weight: torch.Tensor, mean_abs: torch.Tensor
) -> torch.Tensor:
    """The treated weight of one linear, for methods that look at each by itself."""
    if treatment.method == "nf4":
        return nf4_fake_quantize(weight)
    form = number_format(treatment, weight.shape[1])
    if treatment.method == "awq-fixed-s":
        scale = fixed_scale(treatment, weight, mean_abs)
        return fake_quantize(weight * scale, form) / scale
    channels = chosen_channels(treatment, name, weight, mean_abs)
    treated = fake_quantize(weight, form)
    treated[:, channels] = weight[:, channels]
    return treated
