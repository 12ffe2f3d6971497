"""Linears of 16 bits on a GPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import COUNTER_BYTES, DECODE_ROWS, DenseWeight, Tactic

from .op_cases import ROUNDING, Call

pytestmark = pytest.mark.gpu

# cuBLASLt rounds its sums before the bias is added.
ROUNDED_SUMS = 2
ALL_M = (1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 200)
# (n, k): routers, projections around an embedding, output layers, and sizes of no whole tile.
SHAPES = ((8, 4096), (128, 2048), (1024, 512), (151936, 1024), (1, 8), (40, 136), (4097, 264))


class Linear:
    """A weight on the device, and a workspace."""

    def __init__(self, call: Call, n: int, k: int, *, bias: bool = True) -> None:
        self.call = call
        self.weight = call.random(n, k, scale=k**-0.5)
        self.bias = call.random(n, seed=1) if bias else None
        self.parameters = DenseWeight(
            in_features=k,
            out_features=n,
            dtype=call.code,
            weight=self.weight.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
        )

    def __call__(self, x: Any, tactic: int = Tactic.AUTO) -> Any:
        call, m = self.call, len(x)
        given = (self.parameters, m, tactic)
        size = call.library.size("awq_edge_dense_workspace", *given)
        space = call.torch.zeros(size, dtype=call.torch.uint8, device="cuda")
        y = call.torch.full((m, len(self.weight)), call.torch.nan, dtype=call.dtype, device="cuda")
        call.run("awq_edge_dense_linear", self.parameters, x, y, m, tactic, space, size)
        assert not space[:COUNTER_BYTES].any()
        return y

    def exact(self, x: Any) -> Any:
        sums = x.double() @ self.weight.double().T
        return sums if self.bias is None else sums + self.bias.double()


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_agrees_with_float64(call: Call, n: int, k: int) -> None:
    for bias in (True, False):
        linear = Linear(call, n, k, bias=bias)
        for m in ALL_M:
            x = call.random(m, k, seed=m)
            exact = linear.exact(x)
            tactics = [Tactic.AUTO, Tactic.GEMM, Tactic.CUBLASLT]
            for tactic in tactics + [Tactic.DECODE] * (m <= DECODE_ROWS):
                error = float((linear(x, tactic).double() - exact).norm() / exact.norm())
                assert error < ROUNDED_SUMS * ROUNDING[call.name], (m, tactic.name, error)


def test_one_hot_inputs_recover_every_weight(call: Call) -> None:
    n, k = 200, 136
    linear = Linear(call, n, k, bias=False)
    identity = call.torch.eye(k, dtype=call.dtype, device="cuda")
    assert call.torch.equal(linear(identity, Tactic.GEMM), linear.weight.T)
    for begin in range(0, k, 8):
        rows = identity[begin : begin + 8]
        assert call.torch.equal(linear(rows, Tactic.DECODE), linear.weight.T[begin : begin + 8])


def test_outliers_and_repeated_bits(call: Call) -> None:
    linear = Linear(call, 512, 1024)
    x = call.random(16, 1024)
    x[:, 7] = 1000.0
    for tactic in (Tactic.DECODE, Tactic.GEMM):
        first, exact = linear(x, tactic), linear.exact(x)
        error = float((first.double() - exact).norm() / exact.norm())
        assert error < ROUNDING[call.name], (tactic.name, error)
        assert all(call.torch.equal(linear(x, tactic), first) for _ in range(10))


def test_refusals(call: Call) -> None:
    linear = Linear(call, 16, 64)
    with pytest.raises(KernelError, match="m is 17; the decode tactic takes at most 16"):
        linear(call.random(17, 64), Tactic.DECODE)
    linear.parameters.in_features = 12
    with pytest.raises(KernelError, match="in_features is 12; it must be a multiple of 8"):
        linear(call.random(1, 64))
