"""Sufficient statistics against the errors they stand for."""

from __future__ import annotations

import pytest
import torch

from awq_edge.quantizer.statistics import InputStatistics, plan_samples

CPU = torch.device("cpu")
# float32 sums over a few hundred products.
TOLERANCE = 1e-4


def inputs(tokens: int = 300, channels: int = 64) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(tokens, channels, generator=random) * torch.linspace(0.1, 4, channels)


def filled(x: torch.Tensor, sample_tokens: int | None = None) -> InputStatistics:
    statistics = InputStatistics(x.shape[1], CPU, sample_tokens=sample_tokens, seed=3)
    for part in torch.split(x, 70):
        statistics.add(part)
    return statistics


@pytest.mark.parametrize("sample_tokens", [None, 300, 1000])
def test_errors_are_the_outputs_errors(sample_tokens: int | None) -> None:
    """Also from a sample that holds every token: then it is exact."""
    x = inputs()
    statistics = filled(x, sample_tokens)
    difference = torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    expected = (x.double() @ difference.double().T).square().sum(0)
    torch.testing.assert_close(
        statistics.errors(difference).double(), expected, rtol=TOLERANCE, atol=0
    )
    assert statistics.tokens == 300
    torch.testing.assert_close(statistics.mean_abs, x.abs().mean(0), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("sample_tokens", [None, 300])
def test_diagonal_blocks(sample_tokens: int | None) -> None:
    x = inputs()
    gram = x.T @ x
    blocks = filled(x, sample_tokens).diagonal_blocks(32)
    torch.testing.assert_close(blocks[0], gram[:32, :32], rtol=TOLERANCE, atol=1e-3)
    torch.testing.assert_close(blocks[1], gram[32:, 32:], rtol=TOLERANCE, atol=1e-3)


def test_a_sample_estimates_the_error_and_repeats_by_seed() -> None:
    x = inputs(tokens=20_000)
    difference = torch.randn(10, 64, generator=torch.Generator().manual_seed(1))
    exact = filled(x).errors(difference)
    sampled = filled(x, 2_000)
    assert sampled.is_sampled
    # 2,000 independent tokens: the standard error of a sum of squares is sqrt(2 / 2000) = 3 %.
    torch.testing.assert_close(sampled.errors(difference), exact, rtol=0.15, atol=0)
    again = filled(x, 2_000)
    torch.testing.assert_close(sampled.errors(difference), again.errors(difference), rtol=0, atol=0)


def test_budget_gives_the_small_inputs_their_gram_first() -> None:
    sizes = {"attention_in": 64, "attention_out": 64, "mlp_in": 64, "mlp_out": 256}
    assert plan_samples(sizes, 1 << 30) == dict.fromkeys(sizes)
    grams = 3 * 64 * 64 * 4
    plan = plan_samples(sizes, grams + 100 * 256 * 4)
    assert plan == {"attention_in": None, "attention_out": None, "mlp_in": None, "mlp_out": 100}
    tight = plan_samples(sizes, 1000)
    assert all(count is not None and count >= 1 for count in tight.values())


def test_damaged_inputs_are_seen() -> None:
    x = inputs()
    assert filled(x).is_finite()
    x[5, 5] = float("nan")
    assert not filled(x).is_finite()
