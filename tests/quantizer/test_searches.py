"""Scale and clip search: on their own objective they never lose, and they find what AWQ is for."""

from __future__ import annotations

import torch

from awq_edge.quantizer.calibration.statistics import InputStatistics
from awq_edge.quantizer.search.awq import output_error, search_group
from awq_edge.quantizer.search.clipping import search_clips
from awq_edge.quantizer.search.rounding import NumberFormat, fake_quantize
from awq_edge.quantizer.search.scales import GRID, Member, search_scales

FORMAT = NumberFormat(4, 32, "asymmetric")
CHANNELS = 128
SALIENT = (3, 40, 77)


def untied(mean: torch.Tensor) -> torch.Tensor:
    return mean


def problem(salient: float, seed: int = 0) -> tuple[dict[str, torch.Tensor], InputStatistics]:
    """Two linears that read an input in which three channels are `salient` times as large."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(500, CHANNELS, generator=random)
    x[:, SALIENT] *= salient
    statistics = InputStatistics(CHANNELS, torch.device("cpu"), sample_tokens=None, seed=0)
    statistics.add(x)
    weights = {
        name: torch.randn(n, CHANNELS, generator=random) for name, n in (("a", 48), ("b", 24))
    }
    return weights, statistics


def members(weights: dict[str, torch.Tensor], inputs: InputStatistics) -> dict[str, Member]:
    return {name: Member(weight, inputs) for name, weight in weights.items()}


def group_error(
    weights: dict[str, torch.Tensor], statistics: InputStatistics, number_format: NumberFormat
) -> tuple[float, float]:
    """Errors of the group as chosen and of round-to-nearest."""
    choice = search_group(
        members(weights, statistics), number_format, tie=untied, realise=untied, seed=0
    )
    own = sum(
        output_error(w, choice.scale, choice.clips.get(name), statistics, number_format)
        for name, w in weights.items()
    )
    rtn = sum(output_error(w, None, None, statistics, number_format) for w in weights.values())
    return own, rtn


def test_never_worse_than_round_to_nearest() -> None:
    for seed in range(5):
        for scheme in ("asymmetric", "symmetric"):
            for salient in (1.0, 30.0):
                weights, statistics = problem(salient, seed)
                own, rtn = group_error(weights, statistics, NumberFormat(4, 32, scheme))
                assert own <= rtn


def test_salient_channels_are_what_it_is_for() -> None:
    """The paper's claim (its table 2): with salient channels scaling saves most of the error."""
    weights, statistics = problem(30.0)
    own, rtn = group_error(weights, statistics, FORMAT)
    assert own < 0.35 * rtn
    choice = search_scales(list(members(weights, statistics).values()), FORMAT, tie=untied, seed=0)
    salient = choice.scale[list(SALIENT)]
    others = choice.scale[[i for i in range(CHANNELS) if i not in SALIENT]]
    assert salient.min() > others.max()


def test_coarse_to_fine_finds_the_grids_best() -> None:
    """Within 1 % of the loss of trying every point of the grid."""
    for seed in range(4):
        weights, statistics = problem(10.0, seed)
        found = search_scales(
            list(members(weights, statistics).values()), FORMAT, tie=untied, seed=0
        )
        mean_x = statistics.mean_abs / statistics.mean_abs.max()
        best = float("inf")
        for point in range(GRID + 1):
            scale = mean_x ** (point / GRID)
            loss = sum(output_error(w, scale, None, statistics, FORMAT) for w in weights.values())
            best = min(best, loss)
        assert found.loss <= 1.01 * best


def test_a_channel_that_is_never_used_does_no_harm() -> None:
    weights, _ = problem(1.0)
    statistics = InputStatistics(CHANNELS, torch.device("cpu"), sample_tokens=None, seed=0)
    x = torch.randn(100, CHANNELS, generator=torch.Generator().manual_seed(1))
    x[:, 7] = 0
    statistics.add(x)
    choice = search_scales(list(members(weights, statistics).values()), FORMAT, tie=untied, seed=0)
    assert torch.isfinite(choice.scale).all() and (choice.scale > 0).all()
    silent = InputStatistics(CHANNELS, torch.device("cpu"), sample_tokens=None, seed=0)
    silent.add(torch.zeros(10, CHANNELS))
    choice = search_scales(list(members(weights, silent).values()), FORMAT, tie=untied, seed=0)
    assert torch.isfinite(choice.scale).all()


def test_tied_channels_share_a_scale() -> None:
    weights, statistics = problem(30.0)

    def tie(mean: torch.Tensor) -> torch.Tensor:
        pairs = mean.reshape(-1, 2)
        return pairs.mean(1, keepdim=True).expand_as(pairs).reshape(-1)

    choice = search_scales(list(members(weights, statistics).values()), FORMAT, tie=tie, seed=0)
    torch.testing.assert_close(choice.scale[0::2], choice.scale[1::2], rtol=0, atol=0)


def test_clips_lower_the_error_of_each_group() -> None:
    weights, statistics = problem(1.0)
    weight = weights["a"].clone()
    weight[:, 5] = 30.0  # one outlier a group makes the other codes coarse
    blocks = statistics.diagonal_blocks(32)
    # The outlier's channel is nearly silent: cutting it costs nothing.
    blocks[0, 5, :] = 0
    blocks[0, :, 5] = 0
    ratios = search_clips(weight, blocks, FORMAT)
    assert ratios.shape == (48, 4)

    def losses(ratio: torch.Tensor | None) -> torch.Tensor:
        groups = (fake_quantize(weight, FORMAT, ratio) - weight).reshape(48, 4, 32)
        return torch.einsum("ogi,gij,ogj->og", groups, blocks, groups)

    assert (losses(ratios) <= losses(None) * 1.001).all()
    assert (ratios[:, 0] < 1).all() and ratios[:, 0].mean() < 0.6
    assert losses(ratios)[:, 0].sum() < 0.5 * losses(None)[:, 0].sum()


def test_the_weight_aware_form_is_its_definition() -> None:
    """s = mean|x|^a / mean|w|^(1-a), up to a factor: a channel of large weights is scaled less.

    Weights of a group are rounded coarsely where one channel has outliers; the form evens that out,
    so that the search chooses it here.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, CHANNELS, generator=random)
    statistics = InputStatistics(CHANNELS, torch.device("cpu"), sample_tokens=None, seed=0)
    statistics.add(x)
    weight = torch.randn(64, CHANNELS, generator=random)
    weight[:, 5::32] *= 12  # one channel of each group
    choice = search_scales([Member(weight, statistics)], FORMAT, tie=untied, seed=0)
    assert choice.weight_aware and choice.exponent < 1
    groups = weight.abs().reshape(64, -1, FORMAT.group_size)
    mean_w = (groups / groups.amax(2, keepdim=True)).mean(0).flatten()
    mean_x = statistics.mean_abs
    expected = (mean_x / mean_x.max()) ** choice.exponent
    expected = expected / (mean_w / mean_w.max()) ** (1 - choice.exponent)
    expected = expected / (expected.max() * expected.min()).sqrt()
    torch.testing.assert_close(choice.scale, expected)
    assert choice.scale[5::32].max() < choice.scale[6::32].min()
