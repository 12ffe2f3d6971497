"""Ranges of one group of columns: low and high end searched apart, and the zero point beside them.

The error of a candidate is d H d^T for each row, d the group's error and H what the columns after
the group leave of it: with U the upper Cholesky factor of the damped G's inverse, GPTQ makes up for
everything but d (U_bb^T U_bb)^-1 d^T, the conditional Hessian of the group's columns.
"""

from __future__ import annotations

import itertools

import torch

from awq_edge.model.w4a16 import SMALLEST_SCALE
from awq_edge.quantizer.search.rounding import NumberFormat

_SMALLEST_RATIO = 0.5  # of the end of a range
_CHUNK_VALUES = {"cpu": 1 << 18, "cuda": 1 << 26}  # weights times candidates at a time


def search_range(
    weight: torch.Tensor, hessian: torch.Tensor, number_format: NumberFormat, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each row of one group: float16 and float32 [out].

    weight: float32 [out, group], as the columns before it leave it. hessian: float32 [group,
    group]. steps: of each end from 1 down to 0.5; both ends together, and apart at every second
    one. A scale that does not fit fp16 is infinite.
    """
    low, high = _ratio_pairs(number_format.scheme, steps, weight.device)
    rows = max(1, _CHUNK_VALUES[weight.device.type] // (weight.shape[1] * len(low)))
    parts = [_search(part, hessian, number_format, low, high) for part in torch.split(weight, rows)]
    return torch.cat([scales for scales, _ in parts]), torch.cat([zeros for _, zeros in parts])


def conditional_hessians(factor: torch.Tensor, group_size: int) -> torch.Tensor:
    """H of each group of columns, float32 [in / group, group, group]. factor: `inverse_factor` of
    G."""
    count = len(factor) // group_size
    blocks = factor.reshape(count, group_size, count, group_size)
    upper = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).double()
    one = torch.eye(group_size, dtype=torch.float64, device=factor.device).expand_as(upper)
    inverse = torch.linalg.solve_triangular(upper, one, upper=True)
    hessians: torch.Tensor = (inverse @ inverse.mT).float()
    return hessians


def _ratio_pairs(
    scheme: str, steps: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ratios of the low and the high end of the candidates: float32 [candidates] each."""
    ratios = [1 - (1 - _SMALLEST_RATIO) * step / steps for step in range(steps + 1)]
    pairs = [(ratio, ratio) for ratio in ratios]
    if scheme == "asymmetric":
        pairs += itertools.permutations(ratios[::2], 2)
    low, high = zip(*pairs, strict=True)
    return torch.tensor(low, device=device), torch.tensor(high, device=device)


def _search(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    number_format: NumberFormat,
    low: torch.Tensor,
    high: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    levels = 2**number_format.bits - 1
    ends = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    lows, highs = low[:, None] * ends[0], high[:, None] * ends[1]  # [candidates, out]
    if number_format.scheme == "symmetric":
        middle = 2 ** (number_format.bits - 1)
        spans = torch.maximum(-lows / middle, highs / (levels - middle))
    else:
        spans = (highs - lows) / levels
    steps = spans.clamp(min=float(SMALLEST_SCALE)).half().float()
    if number_format.scheme == "symmetric":
        zeros = torch.full_like(steps, middle)
    else:
        zeros = torch.round(-lows / steps).clamp(0, levels)
    errors = _errors(weight, hessian, steps, zeros, levels)
    best = errors.argmin(dim=0, keepdim=True)
    step, zero = (each.gather(0, best)[0] for each in (steps, zeros))
    if number_format.scheme == "symmetric":
        return step.half(), zero
    beside = torch.stack([zero, zero - 1, zero + 1]).clamp(0, levels)
    errors = _errors(weight, hessian, step.expand_as(beside), beside, levels)
    return step.half(), beside.gather(0, errors.argmin(dim=0, keepdim=True))[0]


def _errors(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    steps: torch.Tensor,
    zeros: torch.Tensor,
    levels: int,
) -> torch.Tensor:
    """d H d^T of each candidate and row: float32 [candidates, out]. steps, zeros: likewise."""
    steps, zeros = steps[:, :, None], zeros[:, :, None]
    difference = (weight / steps).round_().add_(zeros).clamp_(0, levels)
    difference.sub_(zeros).mul_(steps).sub_(weight)
    errors: torch.Tensor = torch.linalg.vecdot(difference @ hessian, difference)
    return errors
