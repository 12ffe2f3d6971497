"""Folds: the linears of a group are multiplied by s, what produces their input is divided by it.

    norm          x = norm(h) * w            ->  w / s           (x / s) (W s)^T = x W^T
    value_rows    x = attention(..., v)      ->  rows of v_proj / s, shared by the query heads of
                                                 one key-value head
    up_rows       x = act(gate) * up         ->  rows of up_proj / s

In float32 the block's output does not change; the driver checks it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from awq_edge.archs import Decoder, ScaleGroup
from awq_edge.quantizer.awq import Realise
from awq_edge.quantizer.scales import Tie

Tensors = dict[str, torch.Tensor]


def tie_channels(decoder: Decoder, group: ScaleGroup) -> Tie:
    """The function that averages a per-channel mean over channels that must share one scale."""
    if group.kind != "value_rows" or decoder.num_heads == decoder.num_kv_heads:
        return lambda mean: mean

    def average(mean: torch.Tensor) -> torch.Tensor:
        heads = mean.reshape(decoder.num_kv_heads, -1, decoder.head_size)
        return heads.mean(dim=1, keepdim=True).expand_as(heads).reshape(-1)

    return average


def realise_scale(
    group: ScaleGroup, tensors: Mapping[str, torch.Tensor], storage: torch.dtype
) -> Realise:
    """The function from a wanted scale to the one that rounding the stored norm leaves.

    A norm's weight is stored in 16 bits. Its quotient is rounded first and s follows from it, so
    that the fold stays exact as stored. tensors: of the block, by name relative to it. storage:
    dtype of the norm in the checkpoint.
    """
    if group.kind != "norm":
        return lambda scale: scale
    norm = tensors[f"{group.previous}.weight"]

    def realise(scale: torch.Tensor) -> torch.Tensor:
        exact = norm / (norm / scale).to(storage).float()
        # A channel whose norm is 0 (or underflows) has no input: any scale is exact.
        return torch.where(torch.isfinite(exact) & (exact > 0), exact, torch.ones_like(exact))

    return realise


def fold(decoder: Decoder, group: ScaleGroup, scale: torch.Tensor, tensors: Tensors) -> None:
    """Fold s of one group into the tensors of a block, in place.

    scale: float32 [in], positive. tensors: float32, by name relative to the block.
    """
    for name in (*group.linears, *group.readers):
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * scale
    previous = f"{group.previous}.weight"
    if group.kind == "norm":
        tensors[previous] = tensors[previous] / scale
        return
    rows = row_scale(decoder, group, scale)
    tensors[previous] = tensors[previous] / rows[:, None]
    bias = f"{group.previous}.bias"
    if bias in tensors:
        tensors[bias] = tensors[bias] / rows


def row_scale(decoder: Decoder, group: ScaleGroup, scale: torch.Tensor) -> torch.Tensor:
    """s per row of the linear before: float32 [out of `group.previous`]."""
    if group.kind != "value_rows":
        return scale
    heads = scale.reshape(decoder.num_kv_heads, -1, decoder.head_size)
    return heads[:, 0].reshape(-1)
