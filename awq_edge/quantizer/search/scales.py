"""The AWQ scale search of one scale group, from statistics.

    plain         s = mean|x|^a
    weight-aware  s = mean|x|^a / mean|w|^(1-a)      w: each group of a row divided by its maximum

The loss of a candidate is the squared error of the group's outputs, trace(D G D^T) with
D = Q(W s) / s - W. Source: AWQ, Lin et al. 2023 (arXiv 2306.00978), equations 4 and 5; the
weight-aware form is that of AutoAWQ's duo scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from awq_edge.quantizer.calibration.statistics import InputStatistics
from awq_edge.quantizer.host_memory import column_pieces
from awq_edge.quantizer.search.rounding import NumberFormat, ScaleOverflow, fake_quantize

GRID = 20  # exponents 0, 1/20, ..., 1
_COARSE_STEP = 4  # grid points between those that are tried first
# A point whose loss is so many times the best one's is not refined: neighbours differ by less.
_HOPELESS = 1.25
# Rows of a linear that take part in the search; all of them decide about the fallback.
_SEARCH_ROWS = 512
_SMALLEST = 1e-4  # of a channel's mean|x|, relative to the largest

# s and 1/s per input channel [in], made equal for channels that must share one.
Tie = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ScaleChoice:
    """scale: s, float32 [in]. exponent: a, 0 with `plain` is s = 1. loss: on the searched rows."""

    scale: torch.Tensor
    exponent: float
    weight_aware: bool
    loss: float


@dataclass(frozen=True)
class Member:
    """One linear of a scale group. weight: float32 [out, in]. inputs: what it is multiplied with;
    linears of a group read the same channels, but each expert only the tokens routed to it."""

    weight: torch.Tensor
    inputs: InputStatistics


def search_scales(
    members: Sequence[Member],
    number_format: NumberFormat,
    *,
    tie: Tie,
    seed: int,
) -> ScaleChoice:
    """The best scale of the grid for the linears of a group.

    tie: averages over channels that share a scale (the query heads of one key-value head), applied
    to mean|x| and mean|w|. s = 1 is in the grid.
    The grid is searched from coarse to fine, on a seeded sample of rows.
    """
    weights = [member.weight for member in members]
    mean_x = _floor(tie(_mean_abs(members)))
    mean_w = _floor(tie(_mean_weight(weights, number_format.group_size)))
    rows = [sample_rows(weight, seed + index) for index, weight in enumerate(weights)]
    tried: dict[tuple[int, bool], ScaleChoice] = {}

    def attempt(point: int, weight_aware: bool) -> None:
        if (point, weight_aware) in tried or not 0 <= point <= GRID:
            return
        exponent = point / GRID
        scale = mean_x**exponent
        if weight_aware:
            scale = scale / mean_w ** (1 - exponent)
        scale = scale / (scale.max() * scale.min()).sqrt()
        loss = sum(
            factor * _loss(weight, scale, member.inputs, number_format)
            for (weight, factor), member in zip(rows, members, strict=True)
        )
        tried[point, weight_aware] = ScaleChoice(scale, exponent, weight_aware, loss)

    for weight_aware in (False, True):
        for point in range(0, GRID + 1, _COARSE_STEP):
            attempt(point, weight_aware)
    step = _COARSE_STEP // 2
    while step:
        for weight_aware in (False, True):
            # The two best of each form: the loss has several dips. None that is hopeless.
            limit = _HOPELESS * min(choice.loss for choice in tried.values())
            mine = sorted((c.loss, p) for (p, aware), c in tried.items() if aware == weight_aware)
            for _, point in [each for each in mine[:2] if each[0] <= limit]:
                attempt(point - step, weight_aware)
                attempt(point + step, weight_aware)
        step //= 2
    return min(tried.values(), key=lambda choice: choice.loss)


def _loss(
    weight: torch.Tensor,
    scale: torch.Tensor,
    inputs: InputStatistics,
    number_format: NumberFormat,
) -> float:
    try:
        difference = fake_quantize(weight * scale, number_format).div_(scale).sub_(weight)
    except ScaleOverflow:  # an outlier of the weight times s: no scale to choose
        return math.inf
    return float(inputs.errors(difference).sum())


def _mean_abs(members: Sequence[Member]) -> torch.Tensor:
    """mean|x| over the tokens of all distinct inputs: float32 [in]."""
    distinct = list({id(member.inputs): member.inputs for member in members}.values())
    if len(distinct) == 1:
        return distinct[0].mean_abs
    tokens = max(sum(inputs.tokens for inputs in distinct), 1)
    return torch.stack([inputs.mean_abs * (inputs.tokens / tokens) for inputs in distinct]).sum(0)


def _mean_weight(weights: Sequence[torch.Tensor], group_size: int) -> torch.Tensor:
    """Mean over all rows of |w| relative to the maximum of its group: float32 [in]."""
    total = torch.zeros(weights[0].shape[1], device=weights[0].device)
    for weight in weights:
        for columns in column_pieces(weight, group_size):
            groups = weight[:, columns].abs().reshape(len(weight), -1, group_size)
            groups.div_(groups.amax(dim=2, keepdim=True).clamp(min=1e-12))
            total[columns] += groups.sum(0).flatten()
    return total / sum(len(weight) for weight in weights)


def _floor(mean: torch.Tensor) -> torch.Tensor:
    """Positive and finite powers for channels that are (nearly) always zero."""
    largest = mean.max()
    if largest <= 0:
        return torch.ones_like(mean)
    return (mean / largest).clamp(min=_SMALLEST)


def sample_rows(weight: torch.Tensor, seed: int) -> tuple[torch.Tensor, float]:
    """Some rows, and the factor from their loss to that of all rows."""
    count = len(weight)
    if count <= _SEARCH_ROWS:
        return weight, 1.0
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(count, generator=random)[:_SEARCH_ROWS].sort().values
    return weight[chosen.to(weight.device)], count / _SEARCH_ROWS
