"""The analysis methods do what they say, and the quantizer's methods are the quantizer's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import awq_edge
from awq_edge.evaluate.torch_models import dense_weights
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.calibration.text import load_calibration
from awq_edge.quantizer.search.rounding import NumberFormat, fake_quantize
from awq_edge.runtime.tokenizer import Tokenizer
from experiments.recording import RecordedBlock, record, treat_propagating
from experiments.treatments import Method, Treatment, channel_count, treat_block

CPU = torch.device("cpu")
SAMPLES, LENGTH = 4, 64
LINEAR = "self_attn.q_proj"
# A checkpoint stores norms in float16, a treatment keeps float32; s is chosen so that both agree.
STORED_TOLERANCE = 2e-6
# Share of codes that the last bits of propagated inputs may turn to the neighbouring one.
FLIPPED = 0.005


def draw(model: Path, text: Path) -> object:
    return load_calibration(
        text, Tokenizer(model), samples=SAMPLES, length=LENGTH, seed=0, max_positions=LENGTH
    )


@pytest.fixture(scope="module")
def recorded(study_model: Path, texts: dict[str, Path]) -> list[RecordedBlock]:
    return record(Checkpoint.open(study_model), draw(study_model, texts["own"]), CPU)


def treated(block: RecordedBlock, treatment: Treatment) -> torch.Tensor:
    tensors = treat_block(treatment, block.task, block.tensors, block.statistics)
    return tensors[f"{LINEAR}.weight"]


@pytest.mark.parametrize("propagate_error", [False, True])
@pytest.mark.parametrize("method", ["rtn", "awq", "gptq", "awq+gptq"])
def test_the_quantizers_methods_give_its_checkpoint(
    method: Method,
    propagate_error: bool,
    study_model: Path,
    texts: dict[str, Path],
    recorded: list[RecordedBlock],
    tmp_path: Path,
) -> None:
    """Every tensor of every block, as `awq-edge quantize` stores it."""
    path = awq_edge.quantize(
        study_model,
        tmp_path / "out",
        awq_edge.load_recipe(
            method=method,
            group_size=32,
            samples=SAMPLES,
            length=LENGTH,
            propagate_error=propagate_error,
        ),
        calibration=texts["own"],
    ).path
    treatment = Treatment(method, 4, 32)
    if propagate_error:
        blocks = treat_propagating(
            Checkpoint.open(study_model),
            draw(study_model, texts["own"]),
            CPU,
            lambda *arguments: treat_block(treatment, *arguments),
        )
    else:
        blocks = [treat_block(treatment, b.task, b.tensors, b.statistics) for b in recorded]
    stored = dict(dense_weights(Checkpoint.open(path), torch.float32))
    for layer, (block, tensors) in enumerate(zip(recorded, blocks, strict=True)):
        for name, tensor in tensors.items():
            expected = stored[block.task.full_name(name)]
            same = torch.isclose(tensor, expected, rtol=STORED_TOLERANCE, atol=1e-9)
            flipped = float((~same).float().mean())
            assert flipped <= (FLIPPED if propagate_error and layer else 0), name


@pytest.mark.parametrize("method", ["mixed-activation", "mixed-weight", "mixed-random"])
def test_mixed_keeps_the_channels_of_its_choice(
    method: Method, recorded: list[RecordedBlock]
) -> None:
    block = recorded[0]
    weight = block.tensors[f"{LINEAR}.weight"]
    found = treated(block, Treatment(method, 3, share=0.05))
    plain = fake_quantize(weight, NumberFormat(3, 128, "asymmetric"))
    kept = (found == weight).all(dim=0)
    assert int(kept.sum()) == channel_count(0.05, 128) == 6
    assert torch.equal(found[:, ~kept], plain[:, ~kept])
    score = {
        "mixed-activation": block.statistics[block.task.input_of[LINEAR]].mean_abs,
        "mixed-weight": weight.abs().mean(dim=0),
    }.get(method)
    if score is not None:
        assert score[kept].min() >= score[~kept].max()
    else:
        other = treated(block, Treatment(method, 3, share=0.05, seed=1))
        assert not torch.equal(kept, (other == weight).all(dim=0))


def test_fixed_s_scales_the_largest_activations_alone(recorded: list[RecordedBlock]) -> None:
    block = recorded[0]
    weight = block.tensors[f"{LINEAR}.weight"]
    form = NumberFormat(3, 128, "asymmetric")
    mean_abs = block.statistics[block.task.input_of[LINEAR]].mean_abs
    scale = torch.ones(128)
    scale[mean_abs.argmax()] = 2.0  # 1 % of 128 channels
    expected = fake_quantize(weight * scale, form) / scale
    assert torch.equal(treated(block, Treatment("awq-fixed-s", 3, s=2.0)), expected)
    plain = treated(block, Treatment("awq-fixed-s", 3, s=1.0))
    assert torch.equal(plain, treated(block, Treatment("rtn", 3)))


def test_parts_of_awq(recorded: list[RecordedBlock]) -> None:
    """Clips alone leave the norms, scales alone change them; both lower the output error."""
    for block in recorded:
        inputs = block.statistics[block.task.input_of[LINEAR]]
        weight = block.tensors[f"{LINEAR}.weight"]
        norm = "input_layernorm.weight"
        rtn = float(inputs.errors(treated(block, Treatment("rtn", 2, 32)) - weight).sum())
        clip = treat_block(
            Treatment("awq-clip", 2, 32), block.task, block.tensors, block.statistics
        )
        assert torch.equal(clip[norm], block.tensors[norm])
        assert float(inputs.errors(clip[f"{LINEAR}.weight"] - weight).sum()) < rtn
        scale = treat_block(
            Treatment("awq-scale", 2, 32), block.task, block.tensors, block.statistics
        )
        s = block.tensors[norm] / scale[norm]
        if not torch.equal(s, torch.ones_like(s)):
            groups = [g for g in block.task.groups if LINEAR in g.linears]
            names = block.task.members(groups[0])
            errors = [
                sum(
                    float(inputs.errors(w[f"{n}.weight"] / d - block.tensors[f"{n}.weight"]).sum())
                    for n in names
                )
                for w, d in (
                    (scale, s),
                    (
                        treat_block(
                            Treatment("rtn", 2, 32), block.task, block.tensors, block.statistics
                        ),
                        torch.ones_like(s),
                    ),
                )
            ]
            assert errors[0] < errors[1]


def test_whole_rows_are_one_group(recorded: list[RecordedBlock]) -> None:
    block = recorded[0]
    rows = treat_block(Treatment("rtn", 4, None), block.task, block.tensors, block.statistics)
    for name, columns in ((LINEAR, 128), ("mlp.down_proj", 256)):
        weight = block.tensors[f"{name}.weight"]
        assert weight.shape[1] == columns
        expected = fake_quantize(weight, NumberFormat(4, columns, "asymmetric"))
        assert torch.equal(rows[f"{name}.weight"], expected)


def test_bits_per_weight() -> None:
    assert Treatment("none").bits_per_weight(256) == 16
    assert Treatment("rtn", 4, 128).bits_per_weight(256) == 4 + 20 / 128
    assert Treatment("rtn", 3, None).bits_per_weight(256) == 3 + 19 / 256
    assert Treatment("nf4").bits_per_weight(256) == 4.5
    mixed = Treatment("mixed-random", 3, 128, share=0.01).bits_per_weight(256)
    assert mixed == 3 + 19 / 128 + 13 * 3 / 256
