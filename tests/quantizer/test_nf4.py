"""NF4: QLoRA's published levels, nearest codes, and its place in reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import awq_edge
from awq_edge.quantizer.report.schema import QuantizationReport
from awq_edge.quantizer.search.nf4 import BLOCK, nf4_fake_quantize, nf4_levels

# arXiv 2305.14314, appendix E: the exact values of the data type.
PUBLISHED = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
LEVEL_TOLERANCE = 2e-7  # they were published as float32


def test_levels_are_the_published_ones() -> None:
    assert nf4_levels() == pytest.approx(PUBLISHED, abs=LEVEL_TOLERANCE)


def test_every_weight_goes_to_the_nearest_level_of_its_block() -> None:
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))  # 9 blocks of 64
    found = nf4_fake_quantize(weight)
    levels = torch.tensor(nf4_levels())
    for flat, own in zip(weight.reshape(-1, BLOCK), found.reshape(-1, BLOCK), strict=True):
        distances = (flat[:, None] - levels * flat.abs().max()).abs()
        torch.testing.assert_close((own - flat).abs(), distances.amin(dim=1))


def test_a_block_that_is_not_full_and_one_of_zeros() -> None:
    weight = torch.zeros(2, 50)  # 100 weights: a block of 64, one of 36
    weight[1, 40] = -3.0
    found = nf4_fake_quantize(weight)
    torch.testing.assert_close(found, weight, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_reports_have_it_beside_every_linear(
    method: str, tiny_llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    report = awq_edge.quantize(
        tiny_llama,
        tmp_path / "out",
        awq_edge.load_recipe(method=method, group_size=32, samples=2, length=32),
        calibration=calibration_text,
    ).report
    found = [x.nf4_sqnr_db for block in report.blocks for x in block.linears]
    # The same number of bits: within a few dB of round-to-nearest, and not a copy of it.
    for linear in (x for block in report.blocks for x in block.linears):
        assert linear.nf4_sqnr_db is not None and linear.rtn_sqnr_db is not None
        assert 0 < abs(linear.nf4_sqnr_db - linear.rtn_sqnr_db) < 6
    assert report.summary.mean_nf4_sqnr_db == pytest.approx(sum(map(float, found)) / len(found))


def test_a_report_from_before_is_still_read(tiny_llama: Path, tmp_path: Path) -> None:
    path = awq_edge.quantize(
        tiny_llama, tmp_path / "out", awq_edge.load_recipe(method="rtn", group_size=32)
    ).path
    data = json.loads((path / "quantization_report.json").read_text())
    del data["summary"]["mean_nf4_sqnr_db"]
    for block in data["blocks"]:
        for linear in block["linears"]:
            del linear["nf4_sqnr_db"], linear["nf4_relative_mse"]
    assert QuantizationReport.model_validate(data).summary.mean_nf4_sqnr_db is None
