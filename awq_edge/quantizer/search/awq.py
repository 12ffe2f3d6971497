"""AWQ of one scale group: scale search, clip search, and the comparison with plain rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from awq_edge.quantizer.calibration.statistics import InputStatistics, WeightsOnly
from awq_edge.quantizer.host_memory import return_free_memory
from awq_edge.quantizer.search.clipping import search_clips
from awq_edge.quantizer.search.rounding import NumberFormat, ScaleOverflow, fake_quantize
from awq_edge.quantizer.search.scales import Member, Tie, search_scales

# From the wanted scale [in] to the one that the stored weights realise exactly.
Realise = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GroupChoice:
    """Scale and clips of one scale group.

    scale: s, float32 [in], None for s = 1. clips: by linear, float32 [out, in / group], absent
    where nothing is clipped. exponent, weight_aware: of the scale's form, see
    `awq_edge.quantizer.search.scales`. fell_back: no scale was better than plain rounding.
    rtn_errors: squared output error of each linear rounded plainly, where it was searched.
    """

    scale: torch.Tensor | None = None
    clips: Mapping[str, torch.Tensor] = field(default_factory=dict)
    exponent: float = 0.0
    weight_aware: bool = False
    fell_back: bool = False
    rtn_errors: Mapping[str, float] = field(default_factory=dict)


UNSCALED = GroupChoice()


def search_group(
    members: Mapping[str, Member],
    number_format: NumberFormat,
    *,
    tie: Tie,
    realise: Realise,
    seed: int,
) -> GroupChoice:
    """Scale and clips of the linears of a group, by name; never worse than round-to-nearest.

    The squared output error over the calibration tokens, on all rows and the whole G, is what
    decides.
    """
    choice = search_scales(list(members.values()), number_format, tie=tie, seed=seed)
    scale = realise(choice.scale)
    return_free_memory()
    try:
        scaled, clips = _with_clips(members, scale, number_format)
    except ScaleOverflow:  # in a row that the search did not look at
        scaled, clips = math.inf, {}
    rtn = _rtn_errors(members, number_format)
    is_one = choice.exponent == 0 and not choice.weight_aware
    if scaled < sum(rtn.values()) and not is_one:
        return GroupChoice(scale, clips, choice.exponent, choice.weight_aware, False, rtn)
    _, clips = _with_clips(members, None, number_format)
    return GroupChoice(None, clips, 0.0, False, not is_one, rtn)


def clip_group(members: Mapping[str, Member], number_format: NumberFormat) -> GroupChoice:
    """Clips alone, for a group whose input cannot be scaled; see `search_group`."""
    _, clips = _with_clips(members, None, number_format)
    return GroupChoice(None, clips, 0.0, False, False, _rtn_errors(members, number_format))


def _rtn_errors(members: Mapping[str, Member], number_format: NumberFormat) -> dict[str, float]:
    return {
        name: output_error(member.weight, None, None, member.inputs, number_format)
        for name, member in members.items()
    }


def output_error(
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    clip: torch.Tensor | None,
    statistics: InputStatistics | WeightsOnly,
    number_format: NumberFormat,
) -> float:
    """Squared error of a linear's output over all calibration tokens, quantized so.

    weight: float32 [out, in], before scaling. clip: float32 [out, in / group], of W s.
    """

    def difference(rows: slice) -> torch.Tensor:
        scaled = weight[rows] if scale is None else weight[rows] * scale
        rounded = fake_quantize(scaled, number_format, None if clip is None else clip[rows])
        if scale is not None:
            rounded.div_(scale)
        return rounded.sub_(weight[rows])

    return statistics.summed_error(weight, difference)


def _with_clips(
    members: Mapping[str, Member], scale: torch.Tensor | None, number_format: NumberFormat
) -> tuple[float, dict[str, torch.Tensor]]:
    """The group's error with the best clips, and those clips that lower a linear's error."""
    total = 0.0
    clips = {}
    for name, member in members.items():
        weight, inputs = member.weight, member.inputs
        blocks = inputs.diagonal_blocks(number_format.group_size)
        if scale is not None:
            per_group = scale.reshape(len(blocks), -1)
            blocks = blocks / (per_group[:, :, None] * per_group[:, None, :])
        error = output_error(weight, scale, None, inputs, number_format)
        clip = search_clips(weight, blocks, number_format, scale)
        clipped = output_error(weight, scale, clip, inputs, number_format)
        if clipped < error:
            clips[name] = clip
            error = clipped
        total += error
        return_free_memory()
    return total, clips
