"""Refinement behind GPTQ: each step against its definition, and the whole against GPTQ alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import awq_edge
from awq_edge.quantizer.blocks import work
from awq_edge.quantizer.blocks.task import BlockTask
from awq_edge.quantizer.calibration.statistics import InputStatistics
from awq_edge.quantizer.report.linear import RoundedLinear
from awq_edge.quantizer.search.effort import EFFORTS
from awq_edge.quantizer.search.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.search.ranges import conditional_hessians, search_range
from awq_edge.quantizer.search.refine import RoundedRows, refine, refit, sweep
from awq_edge.quantizer.search.rounding import NumberFormat, Rounded, round_to_nearest

from .conftest import build_model, save_model
from .test_gptq import correlated

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gram() -> torch.Tensor:
    x = correlated(channels=128)
    return x.T @ x


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(24, 128, generator=torch.Generator().manual_seed(1))


def row_errors(weight: torch.Tensor, rounded: Rounded, gram: torch.Tensor) -> torch.Tensor:
    error = (rounded.dequantize() - weight).double()
    return ((error @ gram.double()) * error).sum(1)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_no_row_gets_worse(
    weight: torch.Tensor, gram: torch.Tensor, bits: int, scheme: str
) -> None:
    form = NumberFormat(bits, 32, scheme)
    nearest = round_to_nearest(weight, form)
    refined = refine(weight, nearest, gram, form, EFFORTS["default"])
    before, after = row_errors(weight, nearest, gram), row_errors(weight, refined, gram)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.7 * before.sum()
    assert refined.codes.max() < 2**bits
    if scheme == "symmetric":
        assert torch.equal(refined.zeros, nearest.zeros)


def test_refitted_scales_are_the_minimum(weight: torch.Tensor, gram: torch.Tensor) -> None:
    """The gradient of the row's error by each scale vanishes, but for the scale's fp16 rounding."""
    form = NumberFormat(3, 32, "asymmetric")
    nearest = round_to_nearest(weight, form)
    fitted = refit(RoundedRows.of(weight, nearest, gram), gram).rounded()
    steps = (nearest.codes.double().reshape(24, 4, 32) - nearest.zeros.double()[:, :, None]).numpy()
    for row in range(3):
        basis = torch.zeros(4, 128, dtype=torch.float64)
        for group in range(4):
            basis[group, group * 32 : (group + 1) * 32] = torch.from_numpy(steps[row, group])
        metric = gram.double()
        best = torch.linalg.solve(basis @ metric @ basis.T, basis @ metric @ weight[row].double())
        torch.testing.assert_close(fitted.scales[row].double(), best, rtol=2e-3, atol=0)


def test_a_sweep_leaves_no_code_that_could_be_better_alone(
    weight: torch.Tensor, gram: torch.Tensor
) -> None:
    form = NumberFormat(3, 32, "asymmetric")
    rows = RoundedRows.of(weight, round_to_nearest(weight, form), gram)
    for _ in range(30):
        rows = sweep(rows, gram, 7)
    rounded = rows.rounded()
    error = row_errors(weight, rounded, gram)
    for column in (0, 31, 32, 100, 127):
        for change in (-1, 1):
            codes = rounded.codes.clone().int()
            codes[:, column] = (codes[:, column] + change).clamp(0, 7)
            other = Rounded(codes.to(torch.uint8), rounded.scales, rounded.zeros)
            assert (row_errors(weight, other, gram) >= error * (1 - 1e-5)).all()


def test_the_conditional_hessian_is_a_schur_complement(gram: torch.Tensor) -> None:
    """What is left of a group's error when all columns after it make up for it as they can."""
    damped = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(128).double()
    inside, after = slice(32, 64), slice(64, 128)
    expected = damped[inside, inside] - damped[inside, after] @ torch.linalg.solve(
        damped[after, after], damped[after, inside]
    )
    hessian = conditional_hessians(inverse_factor(gram), 32)[1]
    torch.testing.assert_close(hessian.double(), expected, rtol=1e-3, atol=1e-3 * float(gram.max()))


def test_a_searched_range_is_no_worse_than_the_plain_one(
    weight: torch.Tensor, gram: torch.Tensor
) -> None:
    form = NumberFormat(3, 32, "asymmetric")
    hessian = conditional_hessians(inverse_factor(gram), 32)[0]
    group = weight[:, :32].contiguous()
    scales, zeros = search_range(group, hessian, form, steps=10)
    codes = (group / scales.float()[:, None]).round().add(zeros[:, None]).clamp(0, 7)
    searched = Rounded(codes.to(torch.uint8), scales[:, None], zeros[:, None].to(torch.uint8))
    plain = round_to_nearest(group, form)
    best, given = (row_errors(group, each, hessian) for each in (searched, plain))
    assert (best <= given * (1 + 1e-5)).all() and best.sum() < 0.95 * given.sum()


def test_gptq_with_searched_ranges_leaves_less(gram: torch.Tensor) -> None:
    """On weights with heavy tails, whose outermost are worth cutting."""
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(1)) ** 3
    form = NumberFormat(3, 32, "asymmetric")
    factor = inverse_factor(gram)
    fixed = gptq_round(weight, factor, form)
    searched = gptq_round(weight, factor, form, range_steps=10)
    errors = [float(row_errors(weight, each, gram).sum()) for each in (fixed, searched)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("correction", [0.25, 0.5])
def test_the_target_moves_a_part_of_the_way_to_least_squares(correction: float) -> None:
    x = correlated(channels=64)
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    statistics = InputStatistics(64, CPU, sample_tokens=None, seed=0, correction=correction)
    assert statistics.target(weight) is weight
    statistics.add_pair(x[:100], y[:100])
    statistics.add_pair(x[100:], y[100:])
    ridge = 0.01 * (y.T @ y).diagonal().mean() * torch.eye(64)
    least = torch.linalg.solve((y.T @ y + ridge).double(), (y.T @ x + ridge).double()).T
    moved = weight.double() @ least
    expected = (1 - correction) * weight + correction * moved
    torch.testing.assert_close(statistics.target(weight).double(), expected, rtol=1e-3, atol=1e-3)


def test_streams_of_other_tokens_have_no_cross_term() -> None:
    statistics = InputStatistics(4, CPU, sample_tokens=None, seed=0)
    statistics.add_pair(torch.randn(5, 4), torch.randn(5, 4))
    statistics.add_pair(torch.randn(3, 4), torch.randn(2, 4))  # a router sent one elsewhere
    statistics.add_pair(torch.randn(2, 4), torch.randn(2, 4))
    weight = torch.randn(2, 4)
    assert statistics.target(weight) is weight and statistics.tokens == 9


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_a_model_is_nearer_to_its_original_than_by_gptq(
    model_type: str, calibration_text: Path, tmp_path: Path
) -> None:
    model = save_model(build_model(model_type), tmp_path / "model")
    errors = {}
    for method in ("awq+gptq", "refined"):
        report = awq_edge.quantize(
            model,
            tmp_path / method,
            awq_edge.load_recipe(
                "cpu", method=method, bits=3, group_size=32, samples=16, length=64
            ),
            calibration=calibration_text,
        ).report
        linears = [each for block in report.blocks for each in block.linears]
        errors[method] = sum(each.relative_mse or 0.0 for each in linears)
        for each in linears:
            if each.relative_mse is not None and each.rtn_relative_mse is not None:
                assert each.relative_mse <= each.rtn_relative_mse * (1 + 1e-5), each.name
    assert errors["refined"] < errors["awq+gptq"]


def test_a_block_that_plain_rounding_leaves_nearer_is_rounded_plainly(
    calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes that are shifted by one in the first block alone, as if a search had gone wrong."""
    model = save_model(build_model("llama"), tmp_path / "model")
    round_linears = work.round_linears

    def spoilt(task: BlockTask, *arguments: Any) -> dict[str, RoundedLinear]:
        linears = round_linears(task, *arguments)
        if task.layer > 0 or task.options.refinement is None:
            return linears
        return {
            name: replace(each, rounded=replace(each.rounded, codes=each.rounded.codes ^ 3))
            for name, each in linears.items()
        }

    def stored(name: str, method: str) -> dict[str, torch.Tensor]:
        recipe = awq_edge.load_recipe("cpu", method=method, group_size=32, samples=8, length=64)
        out = awq_edge.quantize(model, tmp_path / name, recipe, calibration=calibration_text).path
        return load_file(out / "model.safetensors")

    sound, nearest = stored("sound", "refined"), stored("nearest", "rtn")
    monkeypatch.setattr(work, "round_linears", spoilt)
    mended = stored("mended", "refined")
    first = [name for name in nearest if ".layers.0." in name]
    assert first and all(torch.equal(mended[name], nearest[name]) for name in first)
    assert not all(torch.equal(sound[name], nearest[name]) for name in first)
    codes = [name for name in nearest if ".layers.1." in name and name.endswith("qweight")]
    assert codes and not all(torch.equal(mended[name], nearest[name]) for name in codes)
