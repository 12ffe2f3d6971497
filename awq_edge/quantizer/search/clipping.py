"""The clip search: how far to shrink the range of each group of each row.

A smaller range rounds finer and cuts the largest weights. Each group of a row is searched by
itself with the diagonal block of G that belongs to it: d G_bb d^T, d the group's error.
Source: AWQ, Lin et al. 2023, section 3 and the released code's clip search, which replays
activations instead.
"""

from __future__ import annotations

import torch

from awq_edge.quantizer.search.rounding import NumberFormat, fake_quantize

_RATIOS = tuple(1 - step / 20 for step in range(11))  # 1.0, 0.95, ..., 0.5
# Weights that are searched at a time, by kind of device: temporaries that stay in a CPU's cache, or
# that keep a GPU busy.
_CHUNK_VALUES = {"cpu": 1 << 18, "cuda": 1 << 25}


def search_clips(
    weight: torch.Tensor,
    blocks: torch.Tensor,
    number_format: NumberFormat,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """The best ratio of each group of each row: float32 [out, in / group], 1 where none helps.

    weight: float32 [out, in], before scaling. blocks: float32 [in / group, group, group], see
    `InputStatistics.diagonal_blocks`, of the input that the scaled weight is multiplied with.
    scale: float32 [in], None for 1.
    """
    rows = max(1, _CHUNK_VALUES[weight.device.type] // weight.shape[1])
    return torch.cat(
        [
            _search(part if scale is None else part * scale, blocks, number_format)
            for part in torch.split(weight, rows)
        ]
    )


def _search(
    weight: torch.Tensor, blocks: torch.Tensor, number_format: NumberFormat
) -> torch.Tensor:
    best = torch.ones(weight.shape[0], blocks.shape[0], device=weight.device)
    best_loss: torch.Tensor | None = None
    for ratio in _RATIOS:
        shrunk = torch.full_like(best, ratio)
        difference = fake_quantize(weight, number_format, shrunk).sub_(weight)
        groups = difference.reshape(len(weight), -1, number_format.group_size).transpose(0, 1)
        loss = ((groups @ blocks) * groups).sum(dim=2).T  # [out, in / group]
        if best_loss is None:
            best_loss = loss
            continue
        better = loss < best_loss
        best = torch.where(better, shrunk, best)
        best_loss = torch.where(better, loss, best_loss)
    return best
