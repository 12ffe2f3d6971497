"""The quantizer on a GPU: the same arithmetic, so nearly the same choices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import awq_edge
from awq_edge.errors import RuntimeUnavailableError
from awq_edge.recipe.recipes import load_recipe

from .conftest import build_model, save_model

# Another attention kernel and other orders of float32 sums: calibration inputs differ in their last
# bits, and so does the error that rounding alone makes (0.001 dB was seen).
RTN_TOLERANCE_DB = 0.01
# A linear's own. Of the searches' candidates, one that is as good as equal may win: on a GPU the
# calibration runs with ten bits of mantissa (0.34 dB was seen). GPTQ carries each such difference
# into the columns that follow.
SQNR_TOLERANCE_DB = 1.0
# Means over all linears. A token between two experts may be sent to the other one.
MEAN_TOLERANCE_DB = 0.2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model("qwen2"), tmp_path_factory.mktemp("model"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("method", ["awq", "awq+gptq"])
def test_cuda_gives_the_quality_of_the_cpu(
    model: Path, calibration_text: Path, tmp_path: Path, method: str
) -> None:
    reports = {}
    for device in ("cpu", "cuda"):
        reports[device] = awq_edge.quantize(
            model,
            tmp_path / device,
            load_recipe(method=method, group_size=32, samples=8, length=64, lm_head_bits=4),
            calibration=calibration_text,
            run=awq_edge.RunOptions(device=device),
        ).report
    cpu, cuda = reports["cpu"], reports["cuda"]
    assert cuda.device == torch.cuda.get_device_name() and cuda.peak_cuda_bytes
    assert cpu.calibration == cuda.calibration
    assert cpu.lm_head is not None and cuda.lm_head is not None
    means = (cpu.summary.mean_sqnr_db, cuda.summary.mean_sqnr_db)
    assert means[0] is not None and means[1] is not None
    assert abs(means[0] - means[1]) < MEAN_TOLERANCE_DB
    heads = (cpu.lm_head.block, cuda.lm_head.block)
    for ours, theirs in [*zip(cpu.blocks, cuda.blocks, strict=True), heads]:
        assert theirs.fold_change is not None and theirs.fold_change < 1e-5
        for a, b in zip(ours.linears, theirs.linears, strict=True):
            assert a.rtn_sqnr_db is not None and b.rtn_sqnr_db is not None
            assert a.sqnr_db is not None and b.sqnr_db is not None
            assert abs(a.rtn_sqnr_db - b.rtn_sqnr_db) < RTN_TOLERANCE_DB
            assert abs(a.sqnr_db - b.sqnr_db) < SQNR_TOLERANCE_DB


def test_a_device_that_is_not_there_is_named(
    model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"cuda:99: torch .* use --device cpu"):
        awq_edge.quantize(
            model,
            tmp_path / "out",
            load_recipe(length=64),
            calibration=calibration_text,
            run=awq_edge.RunOptions(device="cuda:99"),
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_every_architecture_on_cuda(
    tiny_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    summaries = {}
    for device in ("cpu", "cuda"):
        report = awq_edge.quantize(
            tiny_model,
            tmp_path / device,
            load_recipe(method="awq", group_size=32, samples=8, length=64),
            calibration=calibration_text,
            run=awq_edge.RunOptions(device=device),
        ).report
        summaries[device] = report.summary
        for block in report.blocks:
            assert block.fold_change is not None and block.fold_change < 1e-5
    cpu, cuda = summaries["cpu"].mean_sqnr_db, summaries["cuda"].mean_sqnr_db
    assert cpu is not None and cuda is not None
    assert abs(cpu - cuda) < MEAN_TOLERANCE_DB
