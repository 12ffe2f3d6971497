"""The loops of `awq_edge.quantizer.search.columns` as Triton kernels, one launch a group.

A program has 32 rows of the weight. It keeps what the columns so far have added up to as a tile
[columns, rows] in registers, and reads a column when its turn comes:

    column j:  its weight or slope  ─┐
               row j of U^T or G  ·  tile  ─┴─►  code, e_j or d_j  ─►  row j of the tile

Rounding is to the nearest even integer, as torch's, by adding and subtracting 1.5 * 2^23. No
atomics: the same bytes each time. Shapes as there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROWS = 32
_WARPS = 4


def round_columns(
    weight: torch.Tensor,
    factor: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    levels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `awq_edge.quantizer.search.columns.round_columns`."""
    weight = weight.contiguous()
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    errors = torch.empty_like(weight)
    columns, out_features = weight.shape
    _round_kernel[_grid(out_features)](
        weight,
        factor.T.contiguous(),
        scale.contiguous(),
        zero.contiguous(),
        codes,
        errors,
        out_features,
        levels,
        COLUMNS=columns,
        ROWS=_ROWS,
        num_warps=_WARPS,
    )
    return codes, errors


def descend_columns(
    values: torch.Tensor,
    slope: torch.Tensor,
    gram: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    levels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `awq_edge.quantizer.search.columns.descend_columns`."""
    values, slope = values.contiguous(), slope.contiguous()
    columns, out_features = values.shape
    moved = torch.empty(len(scales), columns, out_features, device=values.device)
    change = torch.empty(scales.shape, device=values.device)
    _descend_kernel[(*_grid(out_features), len(scales))](
        values,
        slope,
        gram.contiguous(),
        scales.contiguous(),
        zeros.contiguous(),
        moved,
        change,
        out_features,
        levels,
        COLUMNS=columns,
        ROWS=_ROWS,
        num_warps=_WARPS,
    )
    return moved, change


def _grid(out_features: int) -> tuple[int]:
    return (triton.cdiv(out_features, _ROWS),)


@triton.jit
def _nearest(value, lowest, highest):
    """The nearest integer within bounds that are integers, so that they may come first."""
    value = tl.minimum(tl.maximum(value, lowest), highest)
    return (value + 12582912.0) - 12582912.0


@triton.jit
def _round_kernel(
    weight,
    factor,  # U^T
    scale,
    zero,
    codes,
    errors,
    out_features,
    levels,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < out_features
    column = tl.arange(0, COLUMNS)
    step = tl.load(scale + rows, mask=inside, other=1.0)
    middle = tl.load(zero + rows, mask=inside, other=0.0)
    error = tl.zeros([COLUMNS, ROWS], dtype=tl.float32)
    for j in range(COLUMNS):
        upper = tl.load(factor + j * COLUMNS + column)
        diagonal = tl.load(factor + j * COLUMNS + j)
        left = tl.load(weight + j * out_features + rows, mask=inside, other=0.0)
        left -= tl.sum(upper[:, None] * error, axis=0)
        nearest = _nearest(tl.div_rn(left, step), -middle, levels - middle)
        code = (nearest + middle).to(tl.uint8)
        tl.store(codes + j * out_features + rows, code, mask=inside)
        missed = tl.div_rn(left - nearest * step, diagonal + tl.zeros_like(step))
        error = tl.where(column[:, None] == j, missed[None, :], error)
    place = column[:, None] * out_features + rows[None, :]
    tl.store(errors + place, error, mask=inside[None, :])


@triton.jit
def _descend_kernel(
    values,
    slope,
    gram,
    scales,
    zeros,
    moved,
    change,
    out_features,
    levels,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    grid = tl.program_id(1).to(tl.int64)
    inside = rows < out_features
    column = tl.arange(0, COLUMNS)
    step = tl.load(scales + grid * out_features + rows, mask=inside, other=1.0)
    zero = tl.load(zeros + grid * out_features + rows, mask=inside, other=0.0)
    move = tl.zeros([COLUMNS, ROWS], dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for j in range(COLUMNS):
        row = tl.load(gram + j * COLUMNS + column)
        diagonal = tl.load(gram + j * COLUMNS + j)
        value = tl.load(values + j * out_features + rows, mask=inside, other=0.0)
        half = tl.load(slope + j * out_features + rows, mask=inside, other=0.0)
        half += tl.sum(row[:, None] * move, axis=0)
        pull = tl.div_rn(half, tl.where(diagonal > 0, diagonal, 1.0) + tl.zeros_like(step))
        wanted = tl.where(diagonal > 0, value - pull, value)
        difference = _nearest(tl.div_rn(wanted, step), -zero, levels - zero) * step - value
        total += (2 * half + diagonal * difference) * difference
        move = tl.where(column[:, None] == j, difference[None, :], move)
    tl.store(change + grid * out_features + rows, total, mask=inside)
    place = (grid * COLUMNS + column[:, None]) * out_features + rows[None, :]
    tl.store(moved + place, move, mask=inside[None, :])
