"""Sufficient statistics against the errors they stand for."""

from __future__ import annotations

import pytest
import torch

from awq_edge.quantizer.calibration.statistics import InputStatistics, plan_samples

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
    # Llama-3.1-405B in 2 GiB: two G would take it all.
    large = {"attention_in": 16384, "attention_out": 16384, "mlp_in": 16384, "mlp_out": 53248}
    assert plan_samples(large, 2 << 30) == dict.fromkeys(large, 8192) | {"mlp_out": 2520}
    tight = plan_samples(sizes, 1000)
    assert all(count is not None and count >= 1 for count in tight.values())


def test_damaged_inputs_are_seen() -> None:
    x = inputs()
    assert filled(x).is_finite()
    x[5, 5] = float("nan")
    assert not filled(x).is_finite()


@pytest.mark.parametrize("channels", [64, 1100])
def test_g_is_summed_panel_by_panel(channels: int) -> None:
    """Also where the last panel is not a whole one."""
    x = torch.randn(50, channels, generator=torch.Generator().manual_seed(0))
    gram = filled(x).gram
    assert gram is not None
    torch.testing.assert_close(gram, x.T @ x, rtol=TOLERANCE, atol=1e-4)


def test_g_of_many_tokens_takes_an_even_part_of_them() -> None:
    """About as many as asked for, every position of a sequence as often as any other, and the sum
    extended to all tokens."""
    sequences, length = 800, 128  # 102,400 tokens; 16,384 are enough for 32 channels
    positions = torch.arange(length).repeat(sequences)
    x = torch.randn(len(positions), 32, generator=torch.Generator().manual_seed(0))
    x[:, 0] = (positions == 0).float()  # the first tokens of the sequences
    x[:, 1] = 1
    statistics = InputStatistics(
        32, CPU, sample_tokens=None, seed=0, expected_tokens=len(positions)
    )
    for part in torch.split(x, 1000):
        statistics.add(part)
    gram = statistics.gram
    assert gram is not None and statistics.tokens == len(x)
    assert float(gram[1, 1]) == pytest.approx(len(x), rel=1e-5)
    # 800 first tokens, of which 128 are in the part: one more or less is a per cent.
    assert float(gram[0, 0]) == pytest.approx(sequences, rel=0.05)
    assert int(statistics._gram_tokens) == len(x)
    # Independent channels: a sum of squares over a sample of 16,384, standard error 1 %.
    assert float(gram[5, 5]) == pytest.approx(float(x[:, 5].square().sum()), rel=0.05)
