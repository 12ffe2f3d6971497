"""Experts of a block as linears of their own.

transformers holds all experts of a block in one tensor. On disk each has linears of its own; here
too, so that their inputs can be watched one by one.
"""

from __future__ import annotations

from typing import Any

import torch

from awq_edge.model.archs import Decoder


class SeparateExperts(torch.nn.Module):
    """The experts of a block, each with linears of its own, named as on disk."""

    def __init__(self, decoder: Decoder, activation: torch.nn.Module) -> None:
        super().__init__()
        names, moe = decoder.architecture.experts, decoder.moe
        assert names is not None and moe is not None
        gate, up = (name.rpartition(".")[2] for name in names.mlp_in)
        self._names = (gate, up, names.mlp_out.rpartition(".")[2])
        self._activation = activation
        for expert in range(moe.num_experts):
            linears = (
                torch.nn.Linear(decoder.hidden_size, moe.intermediate_size, bias=False),
                torch.nn.Linear(decoder.hidden_size, moe.intermediate_size, bias=False),
                torch.nn.Linear(moe.intermediate_size, decoder.hidden_size, bias=False),
            )
            self.add_module(
                str(expert), torch.nn.ModuleDict(dict(zip(self._names, linears, strict=True)))
            )

    def forward(
        self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """Sum over a token's experts. hidden: [tokens, hidden]. chosen: int64 [tokens, k], numbers
        of experts. shares: [tokens, k]."""
        output = torch.zeros_like(hidden)
        for expert in sorted(set(chosen.flatten().tolist())):
            gate, up, down = (self.get_submodule(f"{expert}.{name}") for name in self._names)
            tokens, place = torch.where(chosen == expert)
            given = hidden[tokens]
            inner = self._activation(gate(given)) * up(given)
            share = shares[tokens, place, None]
            output.index_add_(0, tokens, (down(inner) * share).to(output.dtype))  # from bfloat16
        return output


def separate_experts(decoder: Decoder, block: torch.nn.Module) -> None:
    """Put `SeparateExperts` in the place of transformers' own, which has them in one tensor."""
    names = decoder.architecture.experts
    assert names is not None
    mixture: Any = block.get_submodule(names.module)
    with torch.device("meta"):
        mixture.experts = SeparateExperts(decoder, mixture.experts.act_fn).eval()


def module_name(decoder: Decoder, name: str) -> str:
    """A name on disk, relative to a block, as transformers' class of the block has it."""
    names = decoder.architecture.experts
    if names is not None:
        on_disk = f"{names.router.rpartition('.')[0]}."
        if name.startswith(on_disk):
            return f"{names.module}.{name.removeprefix(on_disk)}"
    return name
