"""GPTQ: round column by column, and let the columns that follow make up for each error.

With H = G + damping (the Hessian of the output error) and U the upper Cholesky factor of H^-1, the
error e of column j, divided by U[j, j], is subtracted from the columns after it times U[j, :].
Scales and zero points of a group come from its weights as they are when the group is reached.
Source: Frantar et al. 2022 (arXiv 2210.17323), algorithm 1; columns in their own order, which keeps
the groups of the number format.
"""

from __future__ import annotations

import torch

from awq_edge.quantizer.search.columns import round_columns
from awq_edge.quantizer.search.ranges import conditional_hessians, search_range
from awq_edge.quantizer.search.rounding import NumberFormat, Rounded, ScaleOverflow, ranges

_DAMPING = 0.01  # of the mean of G's diagonal, as in the paper


def gptq_round(
    weight: torch.Tensor,
    factor: torch.Tensor,
    number_format: NumberFormat,
    ratio: torch.Tensor | None = None,
    *,
    range_steps: int = 0,
) -> Rounded:
    """Codes of a weight that keep its output on the calibration tokens.

    weight: float32 [out, in]. factor: `inverse_factor` of the G of the input that this weight is
    multiplied with. ratio: clip ratios, float32 [out, in / group], None for 1. range_steps: the
    range of each group is searched in so many steps when its turn comes, see
    `awq_edge.quantizer.search.ranges`; 0 takes the ratio.
    Raises ScaleOverflow when a scale does not fit fp16: errors that are passed on can add up.
    """
    group_size, levels = number_format.group_size, 2**number_format.bits - 1
    out_features, in_features = weight.shape
    # Transposed, so that what is done column by column is contiguous.
    work = weight.T.contiguous()  # [in, out]
    codes = torch.empty(in_features, out_features, dtype=torch.uint8, device=weight.device)
    hessians = conditional_hessians(factor, group_size) if range_steps else None
    all_scales, all_zeros = [], []
    for group in range(in_features // group_size):
        columns = slice(group * group_size, (group + 1) * group_size)
        now = work[columns].T.contiguous()
        if hessians is not None:
            scale, zero = search_range(now, hessians[group], number_format, range_steps)
        else:
            clip = None if ratio is None else ratio[:, group : group + 1]
            scale, zero = (each[:, 0] for each in ranges(now, number_format, clip)[1:])
        codes[columns], errors = round_columns(
            work[columns], factor[columns, columns], scale.float(), zero, levels
        )
        work[columns.stop :].addmm_(factor[columns, columns.stop :].T, errors, alpha=-1)
        all_scales.append(scale)
        all_zeros.append(zero.to(torch.uint8))
    scales = torch.stack(all_scales, dim=1)
    if not torch.isfinite(scales).all():
        raise ScaleOverflow("a scale overflows fp16")
    return Rounded(codes.T.contiguous(), scales, torch.stack(all_zeros, dim=1))


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
