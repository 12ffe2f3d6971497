"""Activations and logits on a GPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import Activation, Dtype
from awq_edge.kernels.kernels import KernelLibrary

from .op_cases import ACTIVATION_STEPS, POISON, SIZES, Call, assert_rounded_once, exact_activation

pytestmark = pytest.mark.gpu


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


@pytest.mark.parametrize("size", (1, 7, 1000, 32003, 262144))
@pytest.mark.parametrize("soft_cap", [0.0, 30.0])
@pytest.mark.parametrize("scale", [1.0, 1 / 6])
def test_logits(call: Call, size: int, soft_cap: float, scale: float) -> None:
    torch, rows = call.torch, 3
    x = call.random(rows, size, scale=40.0)
    x[0, 0] = -3e4
    exact = x.double() * scale
    if soft_cap:
        exact = soft_cap * (exact / soft_cap).tanh()
    y = torch.full((rows, size), POISON, device="cuda")
    given = (rows, size, scale, soft_cap, call.code)
    call.run("awq_edge_logits", x, y, *given, Dtype.FLOAT32)
    assert bool(((y.double() - exact).abs() <= exact.abs() * ACTIVATION_STEPS * 2.0**-24).all())
    call.run("awq_edge_logits", x, x, *given, call.code)  # in place
    assert torch.equal(x, y.to(call.dtype))


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
