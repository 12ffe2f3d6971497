"""SmoothQuant: the migration changes no function, and evens out what 8 bits have to hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.calibration.text import load_calibration
from awq_edge.runtime.tokenizer import Tokenizer
from experiments.recording import RecordedBlock, record
from experiments.smoothquant import (
    migration_scale,
    record_peaks,
    smooth_block,
    w8a8_block,
    w8a8_round,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recorded(study_model: Path, texts: dict[str, Path]) -> list[RecordedBlock]:
    drawn = load_calibration(
        texts["own"], Tokenizer(study_model), samples=2, length=64, seed=0, max_positions=64
    )
    return record(Checkpoint.open(study_model), drawn, CPU)


def test_rounding_is_to_the_nearest_of_255_codes_a_row() -> None:
    values = torch.randn(5, 7, 64) * torch.logspace(-3, 3, 5)[:, None, None]
    found = w8a8_round(values)
    step = values.abs().amax(dim=-1, keepdim=True) / 127
    assert ((found - values).abs() <= step * 0.5001).all()
    assert (found / step).round().abs().max() == 127
    assert w8a8_round(torch.zeros(2, 8)).abs().max() == 0


def test_the_migration_makes_the_peaks_of_both_sides_equal() -> None:
    peak, largest = torch.tensor([100.0, 1.0, 0.01]), torch.tensor([0.04, 1.0, 4.0])
    s = migration_scale(peak, largest)
    torch.testing.assert_close(peak / s, largest * s)
    assert torch.isfinite(migration_scale(torch.zeros(2), torch.zeros(2))).all()


def test_a_smoothed_block_is_the_same_function(recorded: list[RecordedBlock]) -> None:
    block = recorded[0]
    peaks = {block.task.full_name(name): torch.rand(128) * 20 for name in block.task.linears}
    smooth = smooth_block(block.task, block.tensors, peaks)
    for norm, linears in (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        gain, changed = (each[f"{norm}.weight"] for each in (block.tensors, smooth))
        assert not torch.equal(gain, changed)
        for name in linears:
            weight, scaled = (each[f"{name}.weight"] for each in (block.tensors, smooth))
            torch.testing.assert_close(weight * gain, scaled * changed)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):  # as in the released code
        assert torch.equal(smooth[name], block.tensors[name])


def test_outliers_of_activations_go_over_to_the_weights(recorded: list[RecordedBlock]) -> None:
    """With them, a linear's output in W8A8 is far nearer to the exact one after the migration."""
    block, name = recorded[0], "self_attn.q_proj"
    x = torch.randn(50, 128) / block.tensors["input_layernorm.weight"]
    x[:, 3] *= 100
    gain = block.tensors["input_layernorm.weight"]
    linears = {block.task.full_name(each): torch.nn.Identity() for each in block.task.linears}

    def forward() -> None:
        for linear in linears.values():
            linear(x[:20] * gain)
            linear(x[20:] * gain)

    peaks = record_peaks(linears, forward)
    torch.testing.assert_close(peaks[block.task.full_name(name)], (x * gain).abs().amax(dim=0))
    exact = (x * gain) @ block.tensors[f"{name}.weight"].T
    errors = []
    for tensors in (block.tensors, smooth_block(block.task, block.tensors, peaks)):
        rounded = w8a8_block(block.task, tensors)
        inputs = w8a8_round(x * tensors["input_layernorm.weight"])
        errors.append(float((inputs @ rounded[f"{name}.weight"].T - exact).square().sum()))
    assert errors[1] < errors[0] / 4
