"""A model that computes the same function, with its channels in another order.

Weights that were dequantized from 4 bits lie on the grid of their old groups, and rounding them in
the same groups costs nothing: such a model would flatter every quantizer. In an order drawn at
random a new group has weights of many old ones, and no grid.

    hidden channels         one order for the whole model: embedding, norms, columns of the linears
                            that read them, rows of those that write them
    intermediate channels   one order a block: rows of gate and up, columns of down
    key-value heads         one order a block, each with its query heads: rows of q, k and v,
                            columns of o
    channels of a head      one order a head, in v and o alone: rotary positions tell those of q and
                            k apart
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from awq_edge.errors import ModelError
from awq_edge.model.archs import Decoder
from awq_edge.model.checkpoint import Checkpoint

SEED = 1234

# Rows and columns of a weight in their new order, int64; None where they stay.
_Order = tuple[torch.Tensor | None, torch.Tensor | None]


def permute_channels(source: Path, out: Path, seed: int = SEED) -> Path:
    """Write the model with permuted channels to the new directory `out`; returns `out`.

    source: an unquantized Hugging Face model; values and dtypes of its weights stay.
    Raises ModelError for a model that is no decoder of gated MLPs whose linears have no bias.
    """
    decoder = Checkpoint.open(source).decoder
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    orders = _orders(decoder, torch.Generator().manual_seed(seed))
    unknown = sorted(tensors.keys() ^ orders.keys())
    if unknown:
        raise ModelError(
            f"{source}: no order of channels is known for {', '.join(unknown[:3])}; permuted are "
            "decoders of RMS norms and gated MLPs whose linears have no bias"
        )
    permuted = {name: _reordered(tensor, orders[name]) for name, tensor in tensors.items()}
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(permuted, out / "model.safetensors", metadata={"format": "pt"})
    return out


def _orders(decoder: Decoder, random: torch.Generator) -> dict[str, _Order]:
    """The order of every tensor that a model may have, by full name."""
    arch = decoder.architecture
    hidden = torch.randperm(decoder.hidden_size, generator=random)
    orders: dict[str, _Order] = {
        f"{arch.embedding}.weight": (None, hidden),
        f"{arch.final_norm}.weight": (hidden, None),
    }
    if not decoder.tied_embeddings:
        orders[f"{arch.lm_head}.weight"] = (None, hidden)
    for layer in range(decoder.num_layers):
        prefix = decoder.layer_prefix(layer)
        for name, order in _block_orders(decoder, hidden, random).items():
            orders[f"{prefix}.{name}.weight"] = order
    return orders


def _block_orders(
    decoder: Decoder, hidden: torch.Tensor, random: torch.Generator
) -> dict[str, _Order]:
    """The orders of one block, drawn anew; by name of the module. hidden: of its inputs."""
    size, groups = decoder.head_size, decoder.num_kv_heads
    queries = decoder.num_heads // groups  # query heads of one key-value head
    inner = torch.randperm(decoder.intermediate_size, generator=random)
    kv_heads = torch.randperm(groups, generator=random)
    q_heads = (kv_heads[:, None] * queries + torch.arange(queries)).flatten()
    inside = torch.stack([torch.randperm(size, generator=random) for _ in range(groups)])
    orders: dict[str, _Order] = {
        "self_attn.q_proj": (_channels(q_heads, torch.arange(size)), hidden),
        "self_attn.k_proj": (_channels(kv_heads, torch.arange(size)), hidden),
        "self_attn.v_proj": (_channels(kv_heads, inside), hidden),
        "self_attn.o_proj": (hidden, _channels(q_heads, inside.repeat_interleave(queries, dim=0))),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    of_heads = (decoder.architecture.q_norm, decoder.architecture.k_norm)
    for name in decoder.norms():
        orders[name] = (None if name in of_heads else hidden, None)
    return orders


def _channels(heads: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Channels of heads in a new order: int64 [heads * size].

    heads: int64 [heads]. inside: channels of each within the head, int64 [size] or [heads, size].
    """
    return (heads[:, None] * inside.shape[-1] + inside).flatten()


def _reordered(tensor: torch.Tensor, order: _Order) -> torch.Tensor:
    rows, columns = order
    if rows is not None:
        tensor = tensor[rows]
    if columns is not None:
        tensor = tensor[:, columns]
    return tensor.contiguous()
