"""The loops over the columns of a group: torch's by definition, the kernels by torch's."""

from __future__ import annotations

import pytest
import torch

from awq_edge.quantizer.search import columns
from awq_edge.quantizer.search.columns import descend_columns, round_columns
from awq_edge.quantizer.search.effort import EFFORTS
from awq_edge.quantizer.search.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.search.refine import refine
from awq_edge.quantizer.search.rounding import NumberFormat, Rounded, round_to_nearest

from .test_gptq import correlated

ROWS = 333  # no multiple of a kernel's tile
# A kernel adds up a column's terms in another order. A weight halfway between two levels then goes
# to the other one, and GPTQ makes up for it in the columns behind: 0.02 % of the codes were seen.
CODES_THAT_MAY_DIFFER = 0.002
LOSS_TOLERANCE = 1e-3  # relative: as good a rounding, whichever way the ties went


def grid(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain scale and zero point of each row: float32 [out]. weight: [columns, out]."""
    rounded = round_to_nearest(weight.T, NumberFormat(bits, len(weight), "asymmetric"))
    return rounded.scales[:, 0].float(), rounded.zeros[:, 0].float()


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(32, ROWS, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gram() -> torch.Tensor:
    x = correlated(channels=32)
    return x.T @ x


def loss(error: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Of each row: float64 [out]. error: [columns, out]."""
    error = error.double()
    return (error * (gram.double() @ error)).sum(0)


def test_the_change_of_the_loss_is_that_of_the_moves(
    weight: torch.Tensor, gram: torch.Tensor
) -> None:
    scale, zero = grid(weight, 3)
    values = (weight / scale).round() * scale
    slope = gram @ (values - weight)
    scales, zeros = torch.stack([scale, 0.9 * scale]), torch.stack([zero, (zero - 1).clamp(min=0)])
    moved, change = descend_columns(values, slope, gram, scales, zeros, 7)
    before = loss(values - weight, gram)
    for each in range(2):
        after = loss(values + moved[each] - weight, gram)
        torch.testing.assert_close(
            change[each].double(), after - before, rtol=1e-3, atol=1e-4 * float(before.max())
        )
        steps = (values + moved[each]) / scales[each]
        assert ((steps - steps.round()).abs() < 1e-3).all()
        codes = steps.round() + zeros[each]
        assert codes.min() >= 0 and codes.max() <= 7
    assert (change[0] <= 0).all() and change[0].sum() < -0.1 * before.sum()


def test_a_silent_column_keeps_its_codes(weight: torch.Tensor) -> None:
    scale, zero = grid(weight, 3)
    values = ((weight / scale).round() + zero).clamp(0, 7).sub(zero) * scale
    moved, change = descend_columns(
        values, torch.ones_like(values), torch.zeros(32, 32), scale[None], zero[None], 7
    )
    assert not moved.any() and not change.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize(("group_size", "bits"), [(32, 2), (64, 3), (128, 4), (128, 8)])
def test_kernels_do_what_torch_does(
    group_size: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="torch came without Triton")
    x = correlated(channels=4 * group_size).cuda()
    gram = x.T @ x
    factor = inverse_factor(gram)
    weight = torch.randn(ROWS, 4 * group_size, generator=torch.Generator().manual_seed(1)).cuda()
    form = NumberFormat(bits, group_size, "asymmetric")
    one = weight[:, :group_size].T.contiguous()
    scale, zero = grid(one, bits)

    def computed() -> tuple[torch.Tensor, torch.Tensor, Rounded, Rounded]:
        codes, _ = round_columns(one, factor[:group_size, :group_size], scale, zero, 2**bits - 1)
        values = (codes.float() - zero) * scale
        slope = gram[:group_size, :group_size] @ (values - one)
        moved, _ = descend_columns(
            values, slope, gram[:group_size, :group_size], scale[None], zero[None], 2**bits - 1
        )
        rounded = gptq_round(weight, factor, form, range_steps=10)
        return codes, moved, rounded, refine(weight, rounded, gram, form, EFFORTS["default"])

    kernels, again = computed(), computed()
    for first, second in zip(kernels[2:], again[2:], strict=True):
        assert isinstance(first, Rounded) and isinstance(second, Rounded)
        assert torch.equal(first.codes, second.codes)  # the same bytes each time
        assert torch.equal(first.scales, second.scales) and torch.equal(first.zeros, second.zeros)
    monkeypatch.setattr(columns, "_has_triton", lambda: False)
    loops = computed()
    assert (kernels[0] != loops[0]).float().mean() <= CODES_THAT_MAY_DIFFER
    moves = (kernels[1] - loops[1]).abs() > 0.5 * scale
    assert moves.float().mean() <= CODES_THAT_MAY_DIFFER
    for ours, theirs in zip(kernels[2:], loops[2:], strict=True):
        losses = [
            float(loss((each.dequantize() - weight).T, gram).sum()) for each in (ours, theirs)
        ]
        assert losses[0] <= losses[1] * (1 + LOSS_TOLERANCE)
