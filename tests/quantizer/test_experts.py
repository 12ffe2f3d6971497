"""Experts: each its own inputs, some with none; models whose blocks have no place for a scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awq_edge.evaluate.torch_models import open_torch_model
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.runner import BlockRunner
from awq_edge.quantizer.report.schema import LinearReport
from awq_edge.quantizer.search.rounding import NumberFormat, round_to_nearest

from .conftest import build_model, load_block, save_model
from .test_checkpoint_out import logits, quantized, restore

FORMAT = NumberFormat(4, 32, "asymmetric")
EXPERTS = 64


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More experts than a few tokens can reach."""
    model = build_model(
        "qwen3_moe", num_experts=EXPERTS, num_local_experts=EXPERTS, moe_intermediate_size=32
    )
    return save_model(model, tmp_path_factory.mktemp("crowded"))


def few_tokens(model: Path, out: Path, text: Path, method: str = "awq") -> Any:
    return quantized(model, out, text, method, samples=1, length=16)


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
def test_experts_without_tokens_are_rounded_and_listed(
    crowded: Path, calibration_text: Path, tmp_path: Path, method: str
) -> None:
    checkpoint = few_tokens(crowded, tmp_path / "out", calibration_text, method)
    dense, block = checkpoint.report.blocks
    assert dense.silent_inputs == ()
    linears = {linear.name: linear for linear in block.linears}
    silent = {int(name.rpartition(".")[2]) for name in block.silent_inputs}
    # 16 tokens of two experts each; what an expert reads and what it computes are silent together.
    assert EXPERTS - 32 <= len(silent) < EXPERTS
    assert set(block.silent_inputs) == {f"{g}.{e}" for g in ("mlp_in", "mlp_out") for e in silent}
    source, stored = Checkpoint.open(crowded), Checkpoint.open(checkpoint.path)
    for expert in range(EXPERTS):
        reports = [linears[f"mlp.experts.{expert}.{name}_proj"] for name in ("gate", "up", "down")]
        assert all(report.quantized for report in reports)
        if expert in silent:
            assert_plainly_rounded(source, stored, f"model.layers.1.mlp.experts.{expert}.down_proj")
            assert all(is_without_errors(report) for report in reports)
        else:
            assert all(report.sqnr_db is not None for report in reports)
    # No token, no error: a mean over them would be meaningless.
    mean = checkpoint.report.summary.mean_sqnr_db
    assert mean is not None and 5 < mean < 60


def is_without_errors(report: LinearReport) -> bool:
    return report.relative_mse is None and report.rtn_sqnr_db is None and not report.gptq


def assert_plainly_rounded(source: Checkpoint, stored: Checkpoint, name: str) -> None:
    weight = torch.from_numpy(source.dense(f"{name}.weight"))
    rounded = round_to_nearest(weight, FORMAT)
    assert np.array_equal(stored.quantized(name).codes, rounded.codes.numpy())
    assert np.array_equal(stored.quantized(name).scales, rounded.scales.numpy())


def test_an_expert_sees_the_tokens_that_are_sent_to_it(tmp_path: Path) -> None:
    """Against the router's own choice in transformers' block."""
    model = build_model("mixtral")
    checkpoint = Checkpoint.open(save_model(model, tmp_path / "model"))
    sent: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        given.append(inputs[0].reshape(-1, 64))
        sent.append(output[2])

    ids = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))
    handle = model.model.layers[0].mlp.gate.register_forward_hook(note)
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    runner = BlockRunner(checkpoint, torch.device("cpu"))
    hidden = runner.embed(ids, batch=2)
    seen: dict[str, torch.Tensor] = {}
    watchers = {
        readers[0]: lambda rows, name=name: seen.update({name: rows})
        for name, readers in checkpoint.decoder.inputs(0).items()
    }
    with runner.block(0, load_block(checkpoint, 0)) as block, block.watched(watchers):
        block.run(hidden, 0)
    for expert in range(4):
        tokens = (sent[0] == expert).any(dim=1)
        assert 0 < tokens.sum() < 80
        torch.testing.assert_close(seen[f"mlp_in.{expert}"], given[0][tokens])
        assert len(seen[f"mlp_out.{expert}"]) == tokens.sum()


def test_other_tools_leave_the_router_alone(
    crowded: Path, calibration_text: Path, tmp_path: Path
) -> None:
    checkpoint = few_tokens(crowded, tmp_path / "out", calibration_text, "rtn")
    config = json.loads((checkpoint.path / "config.json").read_text())
    kept = config["quantization_config"]["modules_to_not_convert"]
    assert kept == ["lm_head", "model.layers.1.mlp.gate"]
    entries = Checkpoint.open(checkpoint.path).files.entries
    assert entries["model.layers.1.mlp.gate.weight"].dtype == "F16"


def test_bfloat16_experts_stay_bfloat16(calibration_text: Path, tmp_path: Path) -> None:
    model = save_model(build_model("mixtral").to(torch.bfloat16), tmp_path / "model")
    checkpoint = quantized(model, tmp_path / "out", calibration_text)
    entries = Checkpoint.open(checkpoint.path).files.entries
    prefix = "model.layers.0.block_sparse_moe"
    assert entries[f"{prefix}.gate.weight"].dtype == "BF16"
    assert entries[f"{prefix}.experts.1.w3.scales"].dtype == "F16"
    assert json.loads((checkpoint.path / "config.json").read_text())["dtype"] == "bfloat16"
    for block in checkpoint.report.blocks:
        assert block.fold_change is not None and block.fold_change < 1e-5


def test_fused_experts_give_the_same_checkpoint(calibration_text: Path, tmp_path: Path) -> None:
    model = build_model("mixtral")
    for name, is_single in (("single", True), ("fused", False)):
        save_model(model, tmp_path / name, save_original_format=is_single)
        quantized(tmp_path / name, tmp_path / f"{name}-out", calibration_text)
    single, fused = (tmp_path / f"{name}-out/model.safetensors" for name in ("single", "fused"))
    assert single.read_bytes() == fused.read_bytes()


def test_errors_of_experts_may_be_propagated(calibration_text: Path, tmp_path: Path) -> None:
    """Later blocks see the stored experts: the second block's statistics are other ones."""
    from awq_edge.quantizer import quantize_checkpoint
    from awq_edge.recipe.recipes import load_recipe

    model = save_model(build_model("mixtral"), tmp_path / "model")
    recipe = load_recipe("cpu").overridden(
        {
            "quantization.method": "awq",  # of one stream
            "quantization.group_size": 32,
            "calibration.samples": 4,
            "calibration.length": 32,
        }
    )
    errors = []
    for propagate in (False, True):
        report = quantize_checkpoint(
            model,
            tmp_path / f"{propagate}",
            recipe.overridden({"quantization.propagate_error": propagate}),
            model_name="tiny",
            calibration=calibration_text,
        ).report
        errors.append([linear.relative_mse for linear in report.blocks[1].linears])
    assert errors[0] != errors[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"do_layer_norm_before": False, "word_embed_proj_dim": 32},  # OPT-350m
        {"activation_function": "gelu"},  # Galactica
    ],
)
def test_groups_without_a_place_for_the_scale_are_clipped_only(
    changes: dict[str, Any], calibration_text: Path, tmp_path: Path
) -> None:
    model = build_model("opt", **changes)
    path = save_model(model, tmp_path / "model")
    decoder = Checkpoint.open(path).decoder
    checkpoint = quantized(path, tmp_path / "out", calibration_text)
    fixed = {
        name for group in decoder.scale_groups(0) if group.kind == "none" for name in group.linears
    }
    for block in checkpoint.report.blocks:
        for linear in block.linears:
            assert linear.relative_mse is not None and linear.rtn_relative_mse is not None
            if linear.name in fixed:
                assert linear.exponent is None and not linear.fell_back
                assert linear.clip_share > 0
                assert linear.relative_mse < linear.rtn_relative_mse
    ids = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(5))
    found, expected = logits(restore(checkpoint.path), ids), logits(model, ids)
    assert 0.001 < float((found - expected).norm() / expected.norm()) < 0.4
    kept = json.loads((checkpoint.path / "config.json").read_text())["quantization_config"]
    projections = {"model.decoder.project_in", "model.decoder.project_out"}
    assert projections.issubset(kept["modules_to_not_convert"]) == decoder.has_projections


@pytest.mark.parametrize("model_type", ["mixtral", "opt", "gemma2"])
def test_a_checkpoint_is_evaluated(model_type: str, calibration_text: Path, tmp_path: Path) -> None:
    model = build_model(model_type)
    checkpoint = quantized(
        save_model(model, tmp_path / "model"), tmp_path / "out", calibration_text, "rtn"
    )
    ids = list(range(3, 40))
    sources = [
        open_torch_model(path, quantized=is_quantized, device="cpu", dtype=None, threads=None)
        for path, is_quantized in ((tmp_path / "model", False), (checkpoint.path, True))
    ]
    original, found = (np.concatenate(list(source.logits(ids, 0))) for source in sources)
    assert np.allclose(original, logits(model, torch.tensor([ids]))[0].numpy(), atol=1e-4)
    expected = logits(restore(checkpoint.path), torch.tensor([ids]))[0].numpy()
    assert np.allclose(found, expected, atol=1e-4)
