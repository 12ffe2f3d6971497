"""Refinement of rounded weights, in closed form: scales by least squares, codes one by one.

With D = Q - W the error of the codes and G = sum x x^T, both steps lower trace(D G D^T) or leave a
row as it is:

    refit    all scales of a row together, given its codes: the minimum of a quadratic form, rounded
             to fp16 as they are stored
    sweep    column by column, the code whose weight is the best given all other columns'
             (coordinate descent): q_j = Q_j - (G D^T)_j / G_jj, to the nearest level
"""

from __future__ import annotations

import torch

from awq_edge.model.w4a16 import SMALLEST_SCALE
from awq_edge.quantizer.search.rounding import Rounded

_RIDGE = 1e-6  # of the mean diagonal of the normal equations, towards the scales as they are
_BLOCK = 128  # columns between two updates of all other columns
_WORK_VALUES = {"cpu": 1 << 22, "cuda": 1 << 28}  # float32 of the normal equations at a time
_ENOUGH = 0.005  # a round that lowers the loss by less is the last


def refine(
    weight: torch.Tensor, rounded: Rounded, gram: torch.Tensor, bits: int, rounds: int
) -> Rounded:
    """Codes and scales whose output error is no larger in any row.

    weight: float32 [out, in], the target. gram: G of the inputs that it is multiplied with, float32
    [in, in]. rounds: at most; each is one `refit` and one `sweep`, and a last `refit` follows.
    """
    loss = float(_row_errors(weight, rounded, gram).sum())
    for _ in range(rounds):
        rounded = sweep(weight, refit(weight, rounded, gram), gram, bits)
        before, loss = loss, float(_row_errors(weight, rounded, gram).sum())
        if not loss < (1 - _ENOUGH) * before:
            break
    return refit(weight, rounded, gram)


def refit(weight: torch.Tensor, rounded: Rounded, gram: torch.Tensor) -> Rounded:
    """The scales of each row that fit its codes best; see `refine`."""
    out_features, groups = rounded.scales.shape
    rows = max(1, _WORK_VALUES[weight.device.type] // (groups * weight.shape[1]))
    scales = rounded.scales.clone()
    for begin in range(0, out_features, rows):
        part = slice(begin, begin + rows)
        scales[part] = _fitted(weight[part], rounded.rows(part), gram)
    fitted = Rounded(rounded.codes, scales, rounded.zeros)
    better = _row_errors(weight, fitted, gram) < _row_errors(weight, rounded, gram)
    return Rounded(
        rounded.codes, torch.where(better[:, None], scales, rounded.scales), rounded.zeros
    )


def _fitted(weight: torch.Tensor, rounded: Rounded, gram: torch.Tensor) -> torch.Tensor:
    """The minimum for some rows: float16 [rows, in / group]."""
    rows, groups = rounded.scales.shape
    steps = rounded.codes.reshape(rows, groups, -1).float() - rounded.zeros.float()[:, :, None]
    size = steps.shape[2]
    # [rows, in, groups]: G times each group's steps; then both sides of the normal equations.
    products = torch.stack(
        [steps[:, group] @ gram[group * size : (group + 1) * size] for group in range(groups)],
        dim=2,
    )
    matrix = torch.einsum("rkg,rkgj->rkj", steps, products.reshape(rows, groups, size, groups))
    right = ((weight @ gram).reshape(rows, groups, size) * steps).sum(2)
    matrix, right = matrix.double(), right.double()
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True).clamp(min=1e-20)
    ridge = torch.where(diagonal > 0, _RIDGE * mean, mean)
    old = rounded.scales.double()
    solved = torch.linalg.solve(matrix + torch.diag_embed(ridge), right + ridge * old)
    fitted = solved.float().half()
    usable = torch.isfinite(fitted) & (fitted >= float(SMALLEST_SCALE))
    return torch.where(usable, fitted, rounded.scales)


def sweep(weight: torch.Tensor, rounded: Rounded, gram: torch.Tensor, bits: int) -> Rounded:
    """One pass of coordinate descent over the codes; see `refine`."""
    group_size = weight.shape[1] // rounded.scales.shape[1]
    levels = 2**bits - 1
    # Transposed, so that one column is contiguous.
    values = rounded.dequantize().T.contiguous()  # [in, out]
    target, codes = weight.T, rounded.codes.T.contiguous()
    steps = rounded.scales.float().T.contiguous()
    zeros = rounded.zeros.float().T.contiguous()
    slope = gram @ (values - target)  # half the gradient
    diagonal = gram.diagonal().tolist()
    for begin in range(0, len(values), _BLOCK):
        end = min(begin + _BLOCK, len(values))
        before = values[begin:end].clone()
        for column in range(begin, end):
            if diagonal[column] <= 0:
                continue
            step, zero = steps[column // group_size], zeros[column // group_size]
            wanted = slope[column].div(-diagonal[column]).add_(values[column])
            code = wanted.div_(step).round_().add_(zero).clamp_(0, levels)
            codes[column] = code
            value = code.sub_(zero).mul_(step)
            slope[begin:end].addr_(gram[begin:end, column], value - values[column])
            values[column] = value
        moved = values[begin:end] - before
        slope[:begin].addmm_(gram[:begin, begin:end], moved)
        slope[end:].addmm_(gram[end:, begin:end], moved)
    swept = Rounded(codes.T.contiguous(), rounded.scales, rounded.zeros)
    better = _row_errors(weight, swept, gram) < _row_errors(weight, rounded, gram)
    chosen = torch.where(better[:, None], swept.codes, rounded.codes)
    return Rounded(chosen, rounded.scales, rounded.zeros)


def _row_errors(weight: torch.Tensor, rounded: Rounded, gram: torch.Tensor) -> torch.Tensor:
    """(Q - W) G (Q - W)^T of each row: float32 [out]."""
    difference = rounded.dequantize().sub_(weight)
    errors: torch.Tensor = torch.linalg.vecdot(difference @ gram, difference)
    return errors
