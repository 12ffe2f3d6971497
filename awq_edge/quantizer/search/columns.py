"""The loops over the columns of one group, in which each code waits for those before it.

    GPTQ                 w_j = W_j - sum_{i<j} U_ij e_i        e_j = (w_j - Q(w_j)) / U_jj
    coordinate descent   h_j = g_j + sum_{i<j} G_ji d_i        d_j = Q(v_j - h_j / G_jj) - v_j

with Q to the nearest of the row's levels. Rows do not depend on each other. On a GPU a loop is one
Triton kernel (`awq_edge.quantizer.search.column_kernels`), where Triton is there: torch brings it
for CUDA on Linux. Elsewhere, and as the kernels' reference, it is torch's.

All shapes are transposed, [columns, out], so that a column is contiguous; scales and zero points
are float32 [out].
"""

from __future__ import annotations

import functools
import importlib.util

import torch


def round_columns(
    weight: torch.Tensor,
    factor: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    levels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GPTQ's codes, uint8 [columns, out], and errors e, float32 likewise.

    weight: float32 [columns, out], left as it is. factor: U of these columns, float32 [columns,
    columns]. levels: the largest code.
    """
    if _has_kernels(weight.device):
        from awq_edge.quantizer.search import column_kernels

        return column_kernels.round_columns(weight, factor, scale, zero, levels)
    work, errors = weight.clone(), torch.empty_like(weight)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for column, error in enumerate(errors):
        code = torch.div(work[column], scale).round_().add_(zero).clamp_(0, levels)
        codes[column] = code
        torch.sub(work[column], code.sub_(zero).mul_(scale), out=error)
        error.div_(factor[column, column])
        work[column + 1 :].addr_(factor[column, column + 1 :], error, alpha=-1)
    return codes, errors


def descend_columns(
    values: torch.Tensor,
    slope: torch.Tensor,
    gram: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    levels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far coordinate descent moves each weight, float32 [grids, columns, out], and the change
    of the loss, float32 [grids, out]; from the same values onto each of some grids.

    values: the weights as they are, float32 [columns, out]. slope: half the gradient there,
    likewise. gram: G of these columns, float32 [columns, columns]. scales, zeros: of each grid,
    float32 [grids, out].
    """
    if _has_kernels(values.device):
        from awq_edge.quantizer.search import column_kernels

        return column_kernels.descend_columns(values, slope, gram, scales, zeros, levels)
    left = slope.repeat(len(scales), 1, 1)
    moved, change = torch.zeros_like(left), torch.zeros_like(scales)
    lowest, highest = -zeros, levels - zeros
    for column, diagonal in enumerate(gram.diagonal().tolist()):
        half, move = left[:, column], moved[:, column]
        wanted = values[column] if diagonal <= 0 else half.div(-diagonal).add_(values[column])
        step = wanted.div(scales).round_()
        torch.maximum(torch.minimum(step, highest, out=step), lowest, out=step)
        torch.sub(step.mul_(scales), values[column], out=move)
        change.addcmul_(half.mul_(2).add_(move, alpha=diagonal), move)
        for grid in range(len(scales)):
            left[grid, column + 1 :].addr_(gram[column + 1 :, column], move[grid])
    return moved, change


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    """True where torch's compiler of kernels can be imported: not for Windows, nor in every build
    for aarch64."""
    return importlib.util.find_spec("triton") is not None
