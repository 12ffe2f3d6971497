"""Norms and the addition to the residual before them, on a GPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import NormKind

from .op_cases import FLOAT32_ERROR, POISON, ROUNDING, SIZES, SMALLEST, Call, assert_rounded_once

pytestmark = pytest.mark.gpu

KINDS = tuple(NormKind)


def exact_norm(x: Any, weight: Any, bias: Any = None, *, kind: NormKind, offset: float = 0) -> Any:
    x = x.double()
    if kind == NormKind.LAYER:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * (weight.double() + offset)
    return x if bias is None else x + bias.double()


def assert_norm(call: Call, actual: Any, exact: Any, *terms: Any) -> None:
    """Rounded once; float32 errors are relative to the largest of the `terms` of a sum."""
    size = exact.abs()
    for term in terms:
        size = size.maximum(term.double().abs())
    allowed = exact.abs() * ROUNDING[call.name] + size * FLOAT32_ERROR + SMALLEST[call.name]
    error = (actual.double() - exact).abs()
    assert bool((error <= allowed).all()), float((error / allowed).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3, 130])
def test_norm_with_and_without_a_residual(call: Call, rows: int, size: int, kind: NormKind) -> None:
    x, weight = call.random(rows, size), call.random(size, seed=1)
    residual, y = call.random(rows, size, seed=2), call.poisoned(rows, size)
    bias = call.random(size, seed=3) if kind == NormKind.LAYER else None
    call.torch.cuda.synchronize()
    call.normalize(x, kind=kind, weight=weight, bias=bias, y=y)
    exact = exact_norm(x, weight, bias, kind=kind)
    assert_norm(call, y, exact, *([] if bias is None else [bias, 4 * weight]))
    # With a residual: it becomes the rounded sum, and the norm is of that.
    added, before = (residual.float() + x.float()).to(call.dtype), x.clone()
    y = call.poisoned(rows, size)
    call.normalize(x, kind=kind, residual=residual, weight=weight, bias=bias, y=y)
    assert call.torch.equal(residual, added) and call.torch.equal(x, before)
    exact = exact_norm(added, weight, bias, kind=kind)
    assert_norm(call, y, exact, *([] if bias is None else [bias, 4 * weight]))
    # In place, and a row by itself: the same bits.
    call.normalize(x, kind=kind, weight=weight, bias=bias, y=x)
    alone = call.poisoned(1, size)
    call.normalize(before[-1:].clone(), kind=kind, weight=weight, bias=bias, y=alone)
    assert call.torch.equal(x[-1:], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_branch_is_normalized_before_it_is_added(call: Call, size: int, kind: NormKind) -> None:
    """Gemma's order, with weights that are stored less 1; and the factor of Granite."""
    x, residual, y = call.random(5, size, scale=30.0), call.random(5, size, seed=1), None
    post, weight = call.random(size, seed=2, scale=0.2), call.random(size, seed=3, scale=0.2)
    post_bias = call.random(size, seed=4) if kind == NormKind.LAYER else None
    scale = 0.21875
    branch = exact_norm(x, post, post_bias, kind=kind, offset=1)
    before, exact = residual.clone(), residual.double() + scale * branch
    given = {"kind": kind, "weight_offset": 1.0, "residual_scale": scale, "post_weight": post}
    call.normalize(x, **given, post_bias=post_bias, residual=residual)  # no second norm
    terms = [before, branch] if post_bias is None else [before, branch, post_bias, 4 * post]
    assert_norm(call, residual, exact, *terms)
    summed, residual, y = residual, before, call.poisoned(5, size)
    call.normalize(
        x, **given, post_bias=post_bias, residual=residual, weight=weight, bias=None, y=y
    )
    assert call.torch.equal(residual, summed)
    assert_norm(call, y, exact_norm(summed, weight, kind=kind, offset=1), 4 * weight)


def test_extremes(call: Call) -> None:
    size = 4096
    weight = call.random(size, seed=1)
    for kind in KINDS:
        for scale in (1e3, 1e-3):
            x, y = call.random(2, size, scale=scale), call.poisoned(2, size)
            call.normalize(x, kind=kind, weight=weight, y=y)
            exact = exact_norm(x, weight, kind=kind)
            assert_norm(call, y, exact, *([] if kind == NormKind.RMS else [4 * weight]))
        y = call.poisoned(1, size)
        zeros = call.torch.zeros(1, size, dtype=call.dtype, device="cuda")
        call.normalize(zeros, kind=kind, weight=weight, y=y)
        assert not y.any()


def test_a_large_mean_is_taken_away_before_the_squares(call: Call) -> None:
    """mean(x^2) - mean(x)^2 in float32 would lose the variance."""
    x = (call.random(2, 2048) + 512.0).to(call.dtype)
    weight, y = call.random(2048, seed=1), call.poisoned(2, 2048)
    call.normalize(x, kind=NormKind.LAYER, weight=weight, y=y)
    exact = exact_norm(x, weight, kind=NormKind.LAYER)
    error = (y.double() - exact).norm() / exact.norm()
    assert float(error) < 2 * ROUNDING[call.name]


def test_a_refusal_launches_nothing(call: Call) -> None:
    x, weight, y = call.random(2, 64), call.random(64), call.poisoned(2, 64)
    with pytest.raises(KernelError, match="eps is -1; it must be 0 or more"):
        call.normalize(x, weight=weight, y=y, eps=-1.0)
    call.torch.cuda.synchronize()
    assert bool((y == POISON).all())


def test_rms_norm_is_rounded_once(call: Call) -> None:
    x, weight, y = call.random(3, 1000), call.random(1000, seed=1), call.poisoned(3, 1000)
    call.normalize(x, weight=weight, y=y)
    assert_rounded_once(call, y, exact_norm(x, weight, kind=NormKind.RMS))
