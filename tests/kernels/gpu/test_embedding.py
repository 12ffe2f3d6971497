"""Embeddings, packed ones too, learned positions and gathered rows on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import Epilogue

from .op_cases import SIZES, Call, assert_rounded_once

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("size", SIZES)
def test_embedding_and_gather_rows(call: Call, size: int) -> None:
    torch, vocab = call.torch, 300
    table = call.random(vocab, size)
    ids = torch.tensor([5, 0, 299, 5, -1, 300, 2**40], dtype=torch.int64, device="cuda")
    y = call.poisoned(len(ids), size)
    call.run("awq_edge_embedding", ids, table, y, len(ids), size, vocab, 1.0, call.code)
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
    call.run("awq_edge_embedding", ids, table, y, rows, 8, 50, 1.0, call.code)
    assert call.torch.equal(y, table[ids])


@pytest.mark.parametrize("scale", [45.25, 12.0])
def test_embedding_times_a_factor(call: Call, scale: float) -> None:
    table = call.random(40, 1152)
    ids = call.torch.arange(39, -1, -1, device="cuda")
    y = call.poisoned(40, 1152)
    call.run("awq_edge_embedding", ids, table, y, 40, 1152, 40, scale, call.code)
    assert_rounded_once(call, y, table[ids].double() * scale)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_packed_embedding(call: Call, bits: int, group_size: int, symmetric: bool) -> None:
    """The numbers of the same packing that the linear multiplies, each row of a tile."""
    from .w4a16_cases import random_linear, weight_of

    torch = call.torch
    for vocab, size in ((16, group_size), (300, 640), (1000, 1152 // group_size * group_size)):
        table = random_linear(
            vocab, size, bits=bits, group_size=group_size, dtype=call.dtype, symmetric=symmetric
        )
        ids = torch.cat([torch.randperm(vocab), torch.tensor([-1, vocab, 2**40])]).cuda()
        y = call.poisoned(len(ids), size)
        call.run("awq_edge_w4a16_embedding", table.parameters, ids, y, len(ids), 25.25)
        rows = weight_of(table)[torch.where((ids < 0) | (ids >= vocab), 0, ids)]
        assert_rounded_once(call, y, rows * 25.25)


def test_packed_embedding_refusals(call: Call) -> None:
    from .w4a16_cases import random_linear

    ids, y = call.torch.zeros(1, dtype=call.torch.int64, device="cuda"), call.poisoned(1, 128)
    three = random_linear(16, 128, bits=3, dtype=call.dtype)
    with pytest.raises(KernelError, match="bits is 3; supported are 4 and 8"):
        call.run("awq_edge_w4a16_embedding", three.parameters, ids, y, 1, 1.0)
    paired = replace(random_linear(16, 128, dtype=call.dtype), epilogue=Epilogue.SILU_MUL)
    with pytest.raises(KernelError, match="interleaved"):
        call.run("awq_edge_w4a16_embedding", paired.parameters, ids, y, 1, 1.0)


@pytest.mark.parametrize("size", [1, 40, 4097])
def test_learned_positions(call: Call, size: int) -> None:
    torch, positions = call.torch, 20
    table, before = call.random(positions, size), call.random(3 * 4, size, seed=1)
    past = torch.tensor([0, 7, 18], dtype=torch.int64, device="cuda")
    y = before.clone()
    call.run("awq_edge_add_positions", table, past, None, y, 3, 4, size, positions, call.code)
    wanted = (past[:, None] + torch.arange(4, device="cuda")).clamp(max=positions - 1).flatten()
    assert torch.equal(y, (before.float() + table[wanted].float()).to(call.dtype))
    # Sequences of 1, 0 and 4 tokens, one behind the other.
    begin = torch.tensor([0, 1, 1, 5], dtype=torch.int64, device="cuda")
    y = before.clone()
    call.run("awq_edge_add_positions", table, past, begin, y, 3, 4, size, positions, call.code)
    wanted = torch.tensor([0, 18, 19, 19, 19], device="cuda")
    assert torch.equal(y[:5], (before[:5].float() + table[wanted].float()).to(call.dtype))
    assert torch.equal(y[5:], before[5:])
