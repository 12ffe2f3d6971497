"""GPTQ against the plainest form of its algorithm, and against what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import awq_edge
from awq_edge.quantizer.search.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.search.rounding import NumberFormat, round_to_nearest
from awq_edge.recipe.recipes import load_recipe

from .conftest import build_model, save_model


def correlated(tokens: int = 400, channels: int = 256, seed: int = 0) -> torch.Tensor:
    """Inputs whose channels share a few directions, as those of language models do."""
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(tokens, 12, generator=random)
    mix = torch.randn(12, channels, generator=random)
    return shared @ mix + 0.3 * torch.randn(tokens, channels, generator=random)


def plain_gptq(
    weight: torch.Tensor, gram: torch.Tensor, number_format: NumberFormat
) -> torch.Tensor:
    """Optimal brain quantization, column after column, the inverse updated by elimination.

    In float64, without blocks and without Cholesky factors: equations 2 and 3 of the paper.
    """
    work = weight.double().clone()
    inverse = torch.linalg.inv(
        gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(len(gram)).double()
    )
    result = torch.zeros_like(work)
    size = number_format.group_size
    for column in range(work.shape[1]):
        if column % size == 0:
            group = round_to_nearest(work[:, column : column + size].float(), number_format)
            scale, zero = group.scales.double()[:, 0], group.zeros.double()[:, 0]
        code = (torch.round(work[:, column] / scale) + zero).clamp(0, 15)
        result[:, column] = (code - zero) * scale
        error = (work[:, column] - result[:, column]) / inverse[column, column]
        work[:, column:] -= torch.outer(error, inverse[column, column:])
        inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return result


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_the_blocked_form_is_the_plain_algorithm(group_size: int, scheme: str) -> None:
    x = correlated()
    gram = x.T @ x
    weight = torch.randn(24, 256, generator=torch.Generator().manual_seed(1))
    number_format = NumberFormat(4, group_size, scheme)  # type: ignore[arg-type]
    found = gptq_round(weight, inverse_factor(gram), number_format).dequantize()
    expected = plain_gptq(weight, gram, number_format).float()
    # A code at the middle of two may fall either way in float32; what follows makes up for it.
    same = torch.isclose(found, expected, rtol=1e-3, atol=1e-6).float().mean()
    assert same > 0.97

    def error(restored: torch.Tensor) -> float:
        return float((x @ (restored - weight).T).square().sum())

    assert error(found) < 1.02 * error(expected)


def test_correlated_inputs_are_what_it_is_for() -> None:
    x = correlated()
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(1))
    number_format = NumberFormat(4, 128, "asymmetric")
    errors = [
        float((x @ (rounded.dequantize() - weight).T).square().sum())
        for rounded in (
            gptq_round(weight, inverse_factor(x.T @ x), number_format),
            round_to_nearest(weight, number_format),
        )
    ]
    assert errors[0] < 0.3 * errors[1]


def test_a_channel_that_is_never_used_and_singular_inputs_are_no_problem() -> None:
    x = correlated(tokens=20)  # fewer tokens than channels
    x[:, 7] = 0
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    found = gptq_round(weight, inverse_factor(x.T @ x), NumberFormat(4, 64, "asymmetric"))
    assert torch.isfinite(found.dequantize()).all()
    silent = inverse_factor(torch.zeros(256, 256))
    assert torch.isfinite(silent).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model("qwen3"), tmp_path_factory.mktemp("model"))


def test_methods_in_order(model: Path, calibration_text: Path, tmp_path: Path) -> None:
    """With it a linear is never worse than rounding, and it improves on AWQ too."""
    mean = {}
    for method in ("rtn", "awq", "gptq", "awq+gptq"):
        report = awq_edge.quantize(
            model,
            tmp_path / method,
            load_recipe(method=method, group_size=32, samples=8, length=64),
            calibration=calibration_text,
        ).report
        linears = [linear for block in report.blocks for linear in block.linears]
        mean[method] = report.summary.mean_sqnr_db or 0.0
        if method == "gptq":
            assert any(linear.gptq for linear in linears)
            for linear in linears:
                assert linear.exponent is None and linear.clip_share == 0
                assert linear.relative_mse is not None and linear.rtn_relative_mse is not None
                # fp16 scales of folded rows: nothing is folded here.
                assert linear.relative_mse <= linear.rtn_relative_mse * (1 + 1e-5)
    assert min(mean["gptq"], mean["awq"]) > mean["rtn"]
    assert mean["awq+gptq"] > mean["awq"]


def test_without_g_it_rounds_to_nearest(
    model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("cpu").overridden({"quantization.statistics_budget_bytes": "1000 B"})
    report = awq_edge.quantize(
        model,
        tmp_path / "out",
        recipe.asking(method="gptq", group_size=32, samples=4, length=64),
        calibration=calibration_text,
    ).report
    assert not any(linear.gptq for block in report.blocks for linear in block.linears)
