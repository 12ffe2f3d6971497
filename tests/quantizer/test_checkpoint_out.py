"""The whole quantizer on tiny models of every architecture: what is written, and how good it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import awq_edge
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import dequantize
from awq_edge.quantizer import QuantizedCheckpoint
from awq_edge.quantizer.search.rounding import NumberFormat, fake_quantize
from awq_edge.recipe.recipes import load_recipe
from tests.arch_configs import model_class

from .conftest import build_model, save_model

# float32 logits of two blocks; weights of both sides are the same numbers.
LOGITS_TOLERANCE = 2e-5
FORMAT = NumberFormat(4, 32, "asymmetric")


def quantized(
    model: Path, out: Path, calibration: Path, method: str = "awq", **overrides: Any
) -> QuantizedCheckpoint:
    """overrides: of the recipe, the recipe itself, or fields of `awq_edge.RunOptions`."""
    run = {field.name for field in fields(awq_edge.RunOptions)} & overrides.keys()
    of_run = {name: overrides.pop(name) for name in run}
    recipe = overrides.pop("recipe", None) or load_recipe("cpu")
    options = {"method": method, "group_size": 32, "samples": 8, "length": 64, **overrides}
    return awq_edge.quantize(
        model,
        out,
        recipe.asking(**options),
        calibration=calibration,
        run=awq_edge.RunOptions(**of_run),
    )


def restore(path: Path) -> Any:
    """transformers' model of a checkpoint's dequantized weights."""
    checkpoint = Checkpoint.open(path)
    state = {}
    for name in (*checkpoint.decoder.weight_shapes(), *checkpoint.kept_names):
        linear = name.removesuffix(".weight")
        array = (
            dequantize(checkpoint.quantized(linear))
            if checkpoint.is_quantized(linear)
            else checkpoint.dense(name).astype(np.float32)
        )
        state[name] = torch.from_numpy(array)
    return loaded(path, state)


def fake_quantized(path: Path) -> Any:
    """transformers' model of an unquantized directory, its linears rounded in torch."""
    source = Checkpoint.open(path)
    decoder = source.decoder
    linears = {
        f"{decoder.layer_prefix(layer)}.{linear.name}.weight"
        for layer in range(decoder.num_layers)
        for linear in decoder.linears(layer)
    }
    state = {}
    for name in (*decoder.weight_shapes(), *source.kept_names):
        tensor = torch.from_numpy(source.dense(name))
        is_linear = name in linears
        state[name] = fake_quantize(tensor, FORMAT) if is_linear else tensor.half().float()
    return loaded(path, state)


def loaded(path: Path, state: dict[str, torch.Tensor]) -> Any:
    """transformers' model of these weights by their names on disk; every name accounted for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # The class itself turns the names of experts into those it has in memory.
    auto = model_class(config.model_type)
    model, loading = auto._model_mapping[type(config)].from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not loading[kind], (kind, loading[kind])
    return model.eval()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(ids).logits
    return result


def test_every_architecture_is_quantized_and_close_to_its_original(
    tiny_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    kind = model_class(Checkpoint.open(tiny_model).decoder.model_type)
    original = kind.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ids = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(5))
    expected = logits(original, ids)
    errors = {}
    for method in ("rtn", "awq"):
        checkpoint = quantized(tiny_model, tmp_path / method, calibration_text, method)
        found = logits(restore(checkpoint.path), ids)
        errors[method] = float((found - expected).norm() / expected.norm())
        assert checkpoint.report.summary.unquantized_linears == 0
        decoder = Checkpoint.open(tiny_model).decoder
        linears = sum(len(decoder.linears(layer)) for layer in range(decoder.num_layers))
        assert checkpoint.report.summary.quantized_linears == linears
    # 4-bit rounding of random weights: some per cent an output, more after two blocks; a fold or a
    # layout that is wrong gives about 1. Which method wins at the logits of a random model is
    # chance: the objective is compared below.
    for method, error in errors.items():
        assert 0.001 < error < 0.4, method


def test_logits_of_a_rounded_model_are_those_of_fake_quantization(
    tiny_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    checkpoint = quantized(tiny_model, tmp_path / "out", calibration_text, "rtn")
    ids = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(5))
    found, expected = (
        logits(restore(checkpoint.path), ids),
        logits(fake_quantized(tiny_model), ids),
    )
    assert float((found - expected).norm() / expected.norm()) < LOGITS_TOLERANCE


def test_awq_never_loses_to_rounding_in_a_group(
    tiny_model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """On its own objective, as stored: fp16 scales of folded rows round a little differently."""
    report = quantized(tiny_model, tmp_path / "out", calibration_text).report
    decoder = Checkpoint.open(tiny_model).decoder
    for block in report.blocks:
        assert block.fold_change is not None and block.fold_change < 1e-5
        linears = {linear.name: linear for linear in block.linears}
        for group in decoder.scale_groups(block.layer):
            own = [linears[name].relative_mse for name in group.linears]
            rtn = [linears[name].rtn_relative_mse for name in group.linears]
            # Signals of the linears of a group differ; none may lose what the others win.
            if len(group.linears) == 1:
                assert own[0] is not None and rtn[0] is not None
                assert own[0] <= 1.01 * rtn[0]
    summary = report.summary
    assert summary.mean_sqnr_db is not None and summary.mean_rtn_sqnr_db is not None
    assert summary.mean_sqnr_db > summary.mean_rtn_sqnr_db


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model("llama", seed=3)
    return save_model(model, tmp_path_factory.mktemp("llama"))


def salient(source: Path, out: Path, factor: float = 30.0) -> Path:
    """The same function with salient channels: norm channels times `factor`, columns divided."""
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for norm, readers in (
            ("input_layernorm", [f"self_attn.{p}_proj" for p in "qkv"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            tensors[f"{prefix}.{norm}.weight"][[5, 33]] *= factor
            for reader in readers:
                tensors[f"{prefix}.{reader}.weight"][:, [5, 33]] /= factor
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_awq_saves_a_model_with_salient_channels(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """Multiplying a channel and dividing the weights that read it changes nothing but rounding."""
    model = salient(llama, tmp_path / "salient")
    summaries = {
        name: quantized(path, tmp_path / f"{name}-out", calibration_text).report.summary
        for name, path in (("plain", llama), ("salient", model))
    }
    lost = summaries["salient"].mean_rtn_sqnr_db
    plain = summaries["plain"].mean_rtn_sqnr_db
    saved = summaries["salient"].mean_sqnr_db
    assert lost is not None and plain is not None and saved is not None
    assert lost < plain - 2  # dB: rounding alone suffers
    assert saved > plain  # AWQ is better than rounding without the salient channels


def test_report_and_config_say_what_was_done(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    checkpoint = quantized(llama, out, calibration_text, scheme="symmetric", seed=7)
    report = json.loads((out / "quantization_report.json").read_text())
    assert report == json.loads(checkpoint.report.model_dump_json())
    assert report["method"] == "awq" and report["scheme"] == "symmetric"
    assert report["calibration"]["samples"] == 8 and report["calibration"]["seed"] == 7
    assert len(report["blocks"]) == 2 and report["errors_of"] == "outputs"
    assert report["versions"]["torch"] and report["peak_host_bytes"] > 0
    config = json.loads((out / "config.json").read_text())
    settings = config["quantization_config"]
    assert settings["quant_method"] == "awq" and settings["version"] == "gemm"
    # vLLM's Marlin path wants true for the symmetric scheme too.
    assert settings["zero_point"] is True
    assert settings["bits"] == 4 and settings["group_size"] == 32
    assert config["dtype"] == "float16"
    zeros = load_file(out / "model.safetensors")["model.layers.0.mlp.up_proj.qzeros"]
    assert (zeros.view(np.uint32) == 0x88888888).all()
    assert (out / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


def published_unpack(packed: np.ndarray) -> np.ndarray:
    """The published AutoAWQ layout, read in the plainest way: int32 [k, n/8] to codes [k, n]."""
    rows, words = packed.shape
    codes = np.zeros((rows, words * 8), dtype=np.int64)
    for word in range(words):
        for nibble, channel in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            value = packed[:, word].astype(np.int64) & 0xFFFFFFFF
            codes[:, word * 8 + channel] = (value >> (4 * nibble)) & 15
    return codes


def test_weights_read_by_a_second_implementation_of_the_layout(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """Round-to-nearest is simple enough to be written again here, from the model's weights."""
    quantized(llama, tmp_path / "out", calibration_text, "rtn")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    originals = load_file(llama / "model.safetensors")
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        codes = published_unpack(tensors[f"{name}.qweight"])  # [in, out]
        zeros = published_unpack(tensors[f"{name}.qzeros"]).repeat(32, axis=0)
        scales = tensors[f"{name}.scales"].astype(np.float64).repeat(32, axis=0)
        weight = ((codes - zeros) * scales).T
        original = originals[f"{name}.weight"].astype(np.float64)
        assert weight.shape == original.shape
        # Half a step, and half of one more where the zero point was rounded.
        assert (np.abs(weight - original) <= 1.01 * scales.T).all()
        assert np.abs(weight - original).max() > 0


def test_layers_that_do_not_fit_stay_16_bit_with_a_reason(
    calibration_text: Path, tmp_path: Path
) -> None:
    """The sizes of the public stories260k model: an FFN of 172."""
    model = save_model(build_model("llama", intermediate_size=172, mlp_bias=False), tmp_path / "m")
    checkpoint = quantized(model, tmp_path / "out", calibration_text)
    unquantized = checkpoint.report.unquantized
    assert len(unquantized) == 6
    assert unquantized["model.layers.1.mlp.down_proj"] == (
        "in_features 172 is not a multiple of group_size 32"
    )
    assert unquantized["model.layers.0.mlp.up_proj"] == "out_features 172 is not a multiple of 8"
    opened = Checkpoint.open(checkpoint.path)
    assert opened.is_quantized("model.layers.0.self_attn.q_proj")
    assert not opened.is_quantized("model.layers.0.mlp.up_proj")
    assert opened.dense("model.layers.0.mlp.up_proj.weight").dtype == np.float16
    config = json.loads((checkpoint.path / "config.json").read_text())
    assert set(unquantized) < set(config["quantization_config"]["modules_to_not_convert"])


def test_the_same_run_gives_the_same_bytes(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        quantized(llama, tmp_path / name, calibration_text)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_bfloat16_stays_bfloat16(calibration_text: Path, tmp_path: Path) -> None:
    model = save_model(build_model("llama").to(torch.bfloat16), tmp_path / "model")
    checkpoint = quantized(model, tmp_path / "out", calibration_text)
    entries = Checkpoint.open(checkpoint.path).files.entries
    assert entries["model.norm.weight"].dtype == "BF16"
    assert entries["model.layers.0.mlp.up_proj.scales"].dtype == "F16"
    config = json.loads((checkpoint.path / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert checkpoint.report.blocks[0].fold_change is not None


def test_statistics_beyond_the_budget_are_sampled(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("cpu").overridden({"quantization.statistics_budget_bytes": "70000 B"})
    report = quantized(llama, tmp_path / "out", calibration_text, recipe=recipe).report
    assert "attention_out" in report.blocks[0].sampled_inputs
    assert "attention_in" not in report.blocks[0].sampled_inputs
    assert report.summary.mean_sqnr_db is not None
    assert report.summary.mean_rtn_sqnr_db is not None
    assert report.summary.mean_sqnr_db > report.summary.mean_rtn_sqnr_db


def damaged(source: Path, out: Path, name: str, value: float) -> Path:
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    tensors[name].flat[7] = value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_a_weight_that_is_not_finite_is_named(
    llama: Path, calibration_text: Path, tmp_path: Path, method: str
) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    model = damaged(llama, tmp_path / "model", name, float("nan"))
    with pytest.raises(ModelError, match=rf"'{name}' has NaN or inf"):
        quantized(model, tmp_path / "out", calibration_text, method)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_refusals_come_before_the_work(llama: Path, calibration_text: Path, tmp_path: Path) -> None:
    checkpoint = quantized(llama, tmp_path / "out", calibration_text, "rtn").path
    with pytest.raises(ModelError, match=r"is quantized already \(4-bit rtn\); export it"):
        quantized(checkpoint, tmp_path / "again", calibration_text)
    with pytest.raises(ConfigError, match="exists; choose another --out or give --overwrite"):
        quantized(llama, checkpoint, calibration_text)
    with pytest.raises(ConfigError, match="--format awq holds codes of 4 bits, not 3; give"):
        quantized(llama, tmp_path / "again", calibration_text, bits=3, format="awq")
    with pytest.raises(ConfigError, match="method none: there is nothing to quantize"):
        quantized(llama, tmp_path / "again", calibration_text, "none")
    with pytest.raises(ConfigError, match="--device tpu: allowed values: cpu, cuda, cuda:N"):
        quantized(llama, tmp_path / "again", calibration_text, device="tpu")
    with pytest.raises(ConfigError, match="allowed values"):
        quantized(llama, tmp_path / "again", calibration_text, group_size=100)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_progress_is_told_block_by_block(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    quantized(
        llama,
        tmp_path / "out",
        calibration_text,
        observer=lambda done, total, what: seen.append((done, total, what)),
    )
    assert seen == [(0, 2, "block 0"), (1, 2, "block 1"), (2, 2, "writing")]
