"""Refinement of rounded weights, in closed form: scales by least squares, codes one by one.

With D = Q - W the error of the codes and G = sum x x^T, both steps lower trace(D G D^T) or leave
what they look at as it is:

    refit    all scales of a row together, given its codes: the minimum of a quadratic form, rounded
             to fp16 as they are stored
    sweep    group by group, on its own grid and on neighbours of it (another scale, another zero
             point), column by column, the code whose weight is the best given all other columns'
             (coordinate descent); the grid that leaves least is taken

Both need the slope G D, half the gradient; it is kept up to date from step to step. Rows do not
depend on each other and are worked on in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from awq_edge.model.w4a16 import SMALLEST_SCALE
from awq_edge.quantizer.search.columns import descend_columns
from awq_edge.quantizer.search.effort import Effort, Neighbour
from awq_edge.quantizer.search.gptq import gptq_round
from awq_edge.quantizer.search.rounding import NumberFormat, Rounded, concatenate

_RIDGE = 1e-6  # of the mean diagonal of the normal equations, towards the scales as they are
_PIECE_VALUES = {"cpu": 1 << 22, "cuda": 1 << 27}  # weights at a time
_ENOUGH = 0.005  # a round that lowers the loss by less is the last


@dataclass(frozen=True)
class RoundedRows:
    """Rounded rows of a weight and what their error is made of, transposed.

    target, values: W and Q, float32 [in, out]. scales, zeros: float32 [in / group, out]. slope:
    G D, float32 [in, out]. loss: of each row, float32 [out].
    """

    target: torch.Tensor
    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    slope: torch.Tensor
    loss: torch.Tensor

    @staticmethod
    def of(weight: torch.Tensor, rounded: Rounded, gram: torch.Tensor) -> RoundedRows:
        """weight, gram: see `refine`."""
        return _measured(
            weight.T.contiguous(),
            rounded.dequantize().T.contiguous(),
            rounded.scales.float().T.contiguous(),
            rounded.zeros.float().T.contiguous(),
            gram,
        )

    def rounded(self) -> Rounded:
        """The codes."""
        steps = (self.grouped(self.values) / self.scales[:, None]).round_()
        codes = steps.add_(self.zeros[:, None]).reshape(self.values.shape)
        return Rounded(
            codes.T.to(torch.uint8).contiguous(),
            self.scales.T.half().contiguous(),
            self.zeros.T.to(torch.uint8).contiguous(),
        )

    def with_rows(self, chosen: torch.Tensor, other: RoundedRows) -> RoundedRows:
        """With some rows of another state of the same weight. chosen: bool [out]."""

        def mixed(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            return torch.where(chosen, theirs, ours)

        return RoundedRows(
            self.target,
            mixed(self.values, other.values),
            mixed(self.scales, other.scales),
            mixed(self.zeros, other.zeros),
            mixed(self.slope, other.slope),
            mixed(self.loss, other.loss),
        )

    def grouped(self, tensor: torch.Tensor) -> torch.Tensor:
        """[in, out] as [in / group, group, out]."""
        return tensor.reshape(len(self.scales), -1, tensor.shape[1])


def round_refined(
    weight: torch.Tensor,
    factor: torch.Tensor,
    gram: torch.Tensor,
    number_format: NumberFormat,
    effort: Effort,
) -> Rounded:
    """GPTQ's codes with searched ranges, refined; piece by piece of the rows.

    weight: float32 [out, in], the target. factor: `inverse_factor` of G. gram: G of the inputs that
    the weight is multiplied with, float32 [in, in]. Raises ScaleOverflow.
    """
    rows = max(1, _PIECE_VALUES[weight.device.type] // weight.shape[1])
    pieces = []
    for target in torch.split(weight, rows):
        rounded = gptq_round(target, factor, number_format, range_steps=effort.range_steps)
        pieces.append(refine(target, rounded, gram, number_format, effort))
    return concatenate(pieces)


def refine(
    weight: torch.Tensor,
    rounded: Rounded,
    gram: torch.Tensor,
    number_format: NumberFormat,
    effort: Effort,
) -> Rounded:
    """Codes, scales and zero points whose output error is no larger in any row.

    weight, gram: see `round_refined`. Each of the effort's rounds, at most, is one `refit` and one
    `sweep`; a last `refit` follows. Zero points stay in the symmetric scheme.
    """
    neighbours = effort.neighbours
    if number_format.scheme == "symmetric":
        neighbours = tuple(each for each in neighbours if each[1] == 0)
    levels = 2**number_format.bits - 1
    state = RoundedRows.of(weight, rounded, gram)
    for _ in range(effort.rounds):
        before = float(state.loss.sum())
        state = sweep(refit(state, gram), gram, levels, neighbours)
        if not float(state.loss.sum()) < (1 - _ENOUGH) * before:
            break
    return refit(state, gram).rounded()


def _measured(
    target: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    gram: torch.Tensor,
) -> RoundedRows:
    difference = values - target
    slope = gram @ difference
    loss: torch.Tensor = torch.linalg.vecdot(slope, difference, dim=0)
    return RoundedRows(target, values, scales, zeros, slope, loss)


def refit(state: RoundedRows, gram: torch.Tensor) -> RoundedRows:
    """The scales of each row that fit its codes best; see `refine`."""
    steps = (state.grouped(state.values) / state.scales[:, None]).round_()
    scales = state.scales + _correction(steps, state, gram)
    scales = scales.half().float()
    usable = torch.isfinite(scales) & (scales >= float(SMALLEST_SCALE))
    scales = torch.where(usable, scales, state.scales)
    values = steps.mul_(scales[:, None]).reshape(state.values.shape)
    fitted = _measured(state.target, values, scales, state.zeros, gram)
    return state.with_rows(fitted.loss < state.loss, fitted)


def _correction(steps: torch.Tensor, state: RoundedRows, gram: torch.Tensor) -> torch.Tensor:
    """What the minimum adds to the scales: float32 [in / group, out], NaN where there is none.

    steps: codes less zero points, float32 [in / group, group, out].
    """
    groups, size, rows = steps.shape
    matrix = torch.empty(rows, groups, groups, dtype=torch.float64, device=steps.device)
    for group in range(groups):  # the upper triangle of S^T G S, and with it the lower one
        columns = slice(group * size, (group + 1) * size)
        product = (gram[group * size :, columns] @ steps[group]).reshape(-1, size, rows)
        line = torch.linalg.vecdot(product, steps[group:], dim=1).T.double()
        matrix[:, group, group:] = line
        matrix[:, group:, group] = line
    right = torch.linalg.vecdot(steps, state.grouped(state.slope), dim=1).T.double()
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True).clamp(min=1e-20)
    diagonal.add_(torch.where(diagonal > 0, _RIDGE * mean, mean))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    solved = torch.cholesky_solve(right.neg_()[:, :, None], factor)[:, :, 0]
    solved[failed > 0] = torch.nan
    return solved.T.float()


def sweep(
    state: RoundedRows, gram: torch.Tensor, levels: int, neighbours: Sequence[Neighbour] = ()
) -> RoundedRows:
    """One pass of coordinate descent over the codes; see `refine`."""
    values, slope = state.values.clone(), state.slope.clone()
    scales, zeros = state.scales.clone(), state.zeros.clone()
    size = len(values) // len(scales)
    ratios, shifts = zip((1.0, 0), *neighbours, strict=True)
    ratio = torch.tensor(ratios, device=values.device)[:, None]
    shift = torch.tensor(shifts, device=values.device)[:, None]
    for group in range(len(scales)):
        columns = slice(group * size, (group + 1) * size)
        # fp16 as they are stored; a scale beyond its range leaves an infinite loss.
        steps = (scales[group] * ratio).clamp_(min=float(SMALLEST_SCALE)).half().float()
        middles = (zeros[group] + shift).clamp_(0, levels)
        moved, change = descend_columns(
            values[columns], slope[columns], gram[columns, columns], steps, middles, levels
        )
        least, best = change.nan_to_num_(nan=torch.inf).min(dim=0, keepdim=True)
        falls = least[0] < 0
        chosen = moved.gather(0, best[:, None].expand(-1, size, -1))[0]
        chosen = torch.where(falls, chosen, 0)
        scales[group] = torch.where(falls, steps.gather(0, best)[0], scales[group])
        zeros[group] = torch.where(falls, middles.gather(0, best)[0], zeros[group])
        values[columns] += chosen
        slope.addmm_(gram[:, columns], chosen)
    # The sum of all changes, without their rounding.
    loss: torch.Tensor = torch.linalg.vecdot(slope, values - state.target, dim=0)
    swept = RoundedRows(state.target, values, scales, zeros, slope, loss)
    return state.with_rows(loss < state.loss, swept)
