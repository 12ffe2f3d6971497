"""Activations, embeddings and gathered rows on a GPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import Activation
from awq_edge.kernels.kernels import KernelLibrary

from .op_cases import ACTIVATION_STEPS, POISON, SIZES, Call, assert_rounded_once

pytestmark = pytest.mark.gpu


def exact_activation(torch: Any, x: Any, activation: Activation) -> Any:
    """float64, without cancellation in the tails."""
    x = x.double()
    if activation == Activation.SILU:
        return x / (1 + (-x).exp())
    if activation == Activation.GELU:
        return 0.5 * x * torch.special.erfc(-x / 2**0.5)
    if activation == Activation.GELU_TANH:
        inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
        return x / (1 + (-2 * inner).exp())
    positive = x.clamp(min=0)
    return positive if activation == Activation.RELU else positive**2


@pytest.mark.parametrize("activation", tuple(Activation))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3, 65537])
def test_activation(call: Call, rows: int, size: int, activation: Activation) -> None:
    torch = call.torch
    if rows * size > 2**24:
        rows = 2**24 // size
    x, y = call.random(rows, 2 * size, scale=1.5), call.poisoned(rows, size)
    x[0, : size // 2] = -60.0 if activation == Activation.RELU_SQUARED else -1e3  # exp overflows
    gate, up = x.chunk(2, dim=-1)
    call.run("awq_edge_activation", gate, up, y, rows, size, 2 * size, activation, call.code)
    exact = exact_activation(torch, gate, activation)
    assert_rounded_once(call, y, exact * up.double(), steps=ACTIVATION_STEPS)
    # Without a gate, in place.
    whole = gate.contiguous()
    call.run("awq_edge_activation", whole, None, whole, rows, size, size, activation, call.code)
    assert_rounded_once(call, whole, exact, steps=ACTIVATION_STEPS)


@pytest.mark.parametrize("size", SIZES)
def test_embedding_and_gather_rows(call: Call, size: int) -> None:
    torch, vocab = call.torch, 300
    table = call.random(vocab, size)
    ids = torch.tensor([5, 0, 299, 5, -1, 300, 2**40], dtype=torch.int64, device="cuda")
    y = call.poisoned(len(ids), size)
    call.run("awq_edge_embedding", ids, table, y, len(ids), size, vocab, call.code)
    # Ids outside of the vocabulary read row 0.
    assert torch.equal(y, table[[5, 0, 299, 5, 0, 0, 0]])
    rows = torch.tensor([299, 7, 7], dtype=torch.int64, device="cuda")
    picked = call.poisoned(3, size)
    call.run("awq_edge_gather_rows", table, rows, picked, 3, size, call.code)
    assert torch.equal(picked, table[rows])


def test_embedding_of_more_rows_than_a_grid_holds(call: Call) -> None:
    table, rows = call.random(50, 8), 70_000
    ids = call.torch.arange(rows, device="cuda") % 50
    y = call.poisoned(rows, 8)
    call.run("awq_edge_embedding", ids, table, y, rows, 8, 50, call.code)
    assert call.torch.equal(y, table[ids])


def test_advance(library: KernelLibrary, torch: Any) -> None:
    lengths = torch.arange(100, dtype=torch.int64, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    library.call("awq_edge_advance", lengths.data_ptr(), 99, 2**35, stream)
    expected = torch.arange(100, device="cuda") + 2**35
    expected[99] = 99
    assert torch.equal(lengths, expected)


def test_refusals_launch_nothing(call: Call) -> None:
    x, y = call.random(2, 64), call.poisoned(2, 64)
    with pytest.raises(KernelError, match="aligned to 2 bytes"):
        call.run("awq_edge_activation", x.data_ptr() + 1, None, y, 1, 32, 32, 0, call.code)
    call.torch.cuda.synchronize()
    assert bool((y == POISON).all())
