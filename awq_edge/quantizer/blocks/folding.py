"""Folds: the linears of a group are multiplied by s, what produces their input is divided by it.

    norm          x = norm(h) * w + b        ->  w / s, b / s    (x / s) (W s)^T = x W^T
                  x = norm(h) * (1 + w)      ->  (1 + w) / s - 1
    value_rows    x = attention(..., v)      ->  rows of v_proj / s, shared by the query heads of
                                                 one key-value head
    up_rows       x = act(gate) * up         ->  rows of up_proj / s
                  x = relu(up)               ->  the same: relu(up / s) = relu(up) / s
    none          nothing produces x that could be divided: s = 1

What is fused is divided in the rows that are meant: those of v in qkv_proj, of up in gate_up_proj.
The bias of a linear or LayerNorm is divided with its rows, and rounded to 16 bits once more when it
is stored. In float32 the block's output does not change; the loop checks it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from awq_edge.model.archs import Decoder, ScaleGroup
from awq_edge.quantizer.search.awq import Realise
from awq_edge.quantizer.search.scales import Tie

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
    decoder: Decoder,
    group: ScaleGroup,
    tensors: Mapping[str, torch.Tensor],
    storage: Mapping[str, torch.dtype],
) -> Realise:
    """The function from a wanted scale to the one that rounding the stored norm leaves.

    A norm's weight is stored in 16 bits. Its quotient is rounded first and s follows from it, so
    that the fold stays exact as stored. tensors, storage: of the block, and their dtypes in the
    checkpoint, by name relative to it.
    """
    if group.kind != "norm":
        return lambda scale: scale
    name, offset = f"{group.previous}.weight", decoder.norm_offset
    gain, dtype = tensors[name] + offset, storage[name]

    def realise(scale: torch.Tensor) -> torch.Tensor:
        exact = gain / ((gain / scale - offset).to(dtype).float() + offset)
        # A channel whose norm is 0 (or underflows) has no input: any scale is exact.
        return torch.where(torch.isfinite(exact) & (exact > 0), exact, torch.ones_like(exact))

    return realise


def fold(decoder: Decoder, group: ScaleGroup, scale: torch.Tensor, tensors: Tensors) -> None:
    """Fold s of one group into tensors of a block, in place.

    scale: float32 [in], positive. tensors: float32, by name relative to the block; all of them, or
    those that are wanted.
    """
    for name in (*group.linears, *group.readers):
        if f"{name}.weight" in tensors:
            tensors[f"{name}.weight"].mul_(scale)
    assert group.kind != "none", "a scale that cannot be folded is never chosen"
    previous, bias = f"{group.previous}.weight", f"{group.previous}.bias"
    is_norm = group.kind == "norm"
    if is_norm and previous in tensors:
        offset = decoder.norm_offset
        tensors[previous].add_(offset).div_(scale).sub_(offset)
    elif previous in tensors:
        weight = tensors[previous]
        weight.div_(row_scale(decoder, group, scale, len(weight))[:, None])
    if bias in tensors:
        rows = scale if is_norm else row_scale(decoder, group, scale, len(tensors[bias]))
        tensors[bias].div_(rows)


def row_scale(
    decoder: Decoder, group: ScaleGroup, scale: torch.Tensor, out_features: int
) -> torch.Tensor:
    """s per row of the linear before: float32 [out_features], 1 for rows that are not meant."""
    if group.kind == "value_rows":
        scale = scale.reshape(decoder.num_kv_heads, -1, decoder.head_size)[:, 0].reshape(-1)
    if group.rows is None:
        return scale
    rows = torch.ones(out_features, dtype=scale.dtype, device=scale.device)
    rows[slice(*group.rows)] = scale
    return rows
