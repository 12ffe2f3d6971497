"""GPTQ: round column by column, and let the columns that follow make up for each error.

With H = G + damping (the Hessian of the output error) and U the upper Cholesky factor of H^-1, the
error e of column j, divided by U[j, j], is subtracted from the columns after it times U[j, :].
Scales and zero points of a group come from its weights as they are when the group is reached.
Source: Frantar et al. 2022 (arXiv 2210.17323), algorithm 1; columns in their own order, which keeps
the groups of the number format.
"""

from __future__ import annotations

import torch

from awq_edge.quantizer.search.ranges import conditional_hessian, search_range
from awq_edge.quantizer.search.rounding import NumberFormat, Rounded, ranges

_DAMPING = 0.01  # of the mean of G's diagonal, as in the paper
_BLOCK = 128  # columns between two updates of everything to the right


def gptq_round(
    weight: torch.Tensor,
    factor: torch.Tensor,
    number_format: NumberFormat,
    ratio: torch.Tensor | None = None,
    *,
    search: bool = False,
) -> Rounded:
    """Codes of a weight that keep its output on the calibration tokens.

    weight: float32 [out, in]. factor: `inverse_factor` of the G of the input that this weight is
    multiplied with. ratio: clip ratios, float32 [out, in / group], None for 1. search: the range of
    each group is searched when its turn comes, see `awq_edge.quantizer.search.ranges`.
    Raises ScaleOverflow when a scale does not fit fp16: errors that are passed on can add up.
    """
    group_size, levels = number_format.group_size, 2**number_format.bits - 1
    out_features, in_features = weight.shape
    # Transposed, so that what is done column by column is contiguous.
    work = weight.T.contiguous()  # [in, out]
    codes = torch.empty(in_features, out_features, dtype=torch.uint8, device=weight.device)
    all_scales, all_zeros = [], []
    block_size = max(_BLOCK, group_size)
    for begin in range(0, in_features, block_size):
        end = min(begin + block_size, in_features)
        errors = torch.empty(end - begin, out_features, device=weight.device)
        for column in range(begin, end):
            if column % group_size == 0:
                columns, group = slice(column, column + group_size), column // group_size
                now = work[columns].T.contiguous()
                if search:
                    hessian = conditional_hessian(factor, columns)
                    scale, zero = search_range(now, hessian, number_format)
                else:
                    clip = None if ratio is None else ratio[:, group : group + 1]
                    scale, zero = (each[:, 0] for each in ranges(now, number_format, clip)[1:])
                step = scale.float()
                all_scales.append(scale)
                all_zeros.append(zero.to(torch.uint8))
            code = torch.div(work[column], step).round_().add_(zero).clamp_(0, levels)
            codes[column] = code
            error = errors[column - begin]
            torch.sub(work[column], code.sub_(zero).mul_(step), out=error)
            error.div_(factor[column, column])
            work[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
        work[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return Rounded(
        codes.T.contiguous(), torch.stack(all_scales, dim=1), torch.stack(all_zeros, dim=1)
    )


def inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped G's inverse, float32 [in, in]. gram: G, like it.

    Factorised in float64: G of correlated inputs is nearly singular.
    """
    hessian = gram.double()
    diagonal = hessian.diagonal()
    mean = diagonal.mean().clamp(min=1e-30)
    diagonal.add_(_DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor
