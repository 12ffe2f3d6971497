"""Routed experts on a GPU: random packed weights, the numbers they stand for, and calls."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch

from awq_edge.kernels.interface import COUNTER_BYTES, Epilogue, Routing, W4A16Weight
from awq_edge.kernels.kernels import KernelLibrary
from tests.kernels.gpu.w4a16_cases import Linear, random_linear, reference, weight_of


@dataclass(frozen=True)
class Experts:
    """Weights of all experts, and behind each other, as the kernels read them."""

    gate_up: tuple[Linear, ...]
    down: tuple[Linear, ...]
    top_k: int
    normalize: bool

    @functools.cached_property
    def weights(self) -> list[tuple[Any, Any]]:
        """The numbers of gate_up and down of each expert, float64."""
        return [
            (weight_of(gate_up), weight_of(down))
            for gate_up, down in zip(self.gate_up, self.down, strict=True)
        ]

    def parameters(self, name: str) -> tuple[W4A16Weight, Any]:
        """The weight of expert 0, and the tensors that its pointers lead to."""
        each: tuple[Linear, ...] = getattr(self, name)
        fields = ("qweight", "scales", "zeros", "bias")
        stacked = {
            field: torch.stack([getattr(linear, field) for linear in each])
            for field in fields
            if getattr(each[0], field) is not None
        }
        return replace(each[0], **stacked).parameters, stacked


def random_experts(
    count: int,
    size: int,
    intermediate: int,
    *,
    top_k: int,
    normalize: bool = True,
    epilogue: Epilogue = Epilogue.SILU_MUL,
    **options: Any,
) -> Experts:
    """options: of random_linear."""
    return Experts(
        gate_up=tuple(
            random_linear(2 * intermediate, size, epilogue=epilogue, seed=2 * i, **options)
            for i in range(count)
        ),
        down=tuple(
            random_linear(size, intermediate, seed=2 * i + 1, **options) for i in range(count)
        ),
        top_k=top_k,
        normalize=normalize,
    )


def expected(experts: Experts, logits: Any, x: Any) -> Any:
    """float64 [m, size]."""
    chosen = torch.sort(logits.double(), dim=1, descending=True, stable=True).indices
    chosen = chosen[:, : experts.top_k]
    shares = logits.double().softmax(dim=1).gather(1, chosen)
    if experts.normalize:
        shares = shares / shares.sum(dim=1, keepdim=True)
    y = torch.zeros(x.shape, dtype=torch.float64, device="cuda")
    for number in chosen.unique().tolist():
        row, slot = torch.where(chosen == number)
        weight_in, weight_out = experts.weights[number]
        hidden = reference(experts.gate_up[number], weight_in, x[row])
        output = reference(experts.down[number], weight_out, hidden)
        y.index_add_(0, row, shares[row, slot, None] * output)
    return y


class ExpertsCall:
    """awq_edge_experts with a workspace of its own, poisoned but for the counters."""

    def __init__(self, library: KernelLibrary, experts: Experts, max_m: int) -> None:
        self._library = library
        self._gate_up, self._kept = experts.parameters("gate_up")
        self._down, self._kept_too = experts.parameters("down")
        self._routing = Routing(
            num_experts=len(experts.down),
            top_k=experts.top_k,
            normalize=int(experts.normalize),
        )
        given = (self._gate_up, self._down, self._routing, max_m)
        size = library.size("awq_edge_experts_workspace", *given)
        self.workspace = torch.full((size,), 255, dtype=torch.uint8, device="cuda")
        self.workspace[:COUNTER_BYTES] = 0

    def __call__(self, logits: Any, x: Any) -> Any:
        y = torch.full_like(x, torch.nan)
        self._library.call(
            *("awq_edge_experts", self._gate_up, self._down, self._routing),
            *(logits.data_ptr(), x.data_ptr(), y.data_ptr(), len(x)),
            *(self.workspace.data_ptr(), self.workspace.numel()),
            torch.cuda.current_stream().cuda_stream,
        )
        if not torch.cuda.is_current_stream_capturing():
            assert not self.workspace[:COUNTER_BYTES].any()
        return y


def inputs(m: int, size: int, count: int, dtype: Any, seed: int = 0) -> tuple[Any, Any]:
    random = torch.Generator("cuda").manual_seed(seed)
    logits = torch.randn(m, count, generator=random, device="cuda").to(dtype)
    return logits, torch.randn(m, size, generator=random, device="cuda").to(dtype)
