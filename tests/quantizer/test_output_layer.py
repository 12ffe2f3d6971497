"""The output layer: searched on the final norm's output, folded into it, stored beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import awq_edge
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import layouts
from awq_edge.model.lm_head import output_format
from awq_edge.model.w4a16 import NumberFormat, dequantize
from awq_edge.quantizer.blocks.task import BlockTask, OutputLayerTask
from awq_edge.recipe.recipes import load_recipe
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import SessionOptions
from awq_edge.runtime.tokenizer import Tokenizer

from .conftest import build_model, save_model
from .test_checkpoint_out import logits, quantized, restore
from .test_formats import EXACT_TOLERANCE, relative, token_ids

FOLD_TOLERANCE = 1e-5  # float32 sums of 64 products


def salient_head(path: Path, **config: Any) -> Path:
    """A tiny llama whose final norm has two large channels that the output layer reads weakly."""
    model = build_model("llama", seed=4, tie_word_embeddings=False, **config)
    with torch.no_grad():
        model.model.norm.weight[[7, 40]] *= 30
        model.lm_head.weight[:, [7, 40]] /= 30
    return save_model(model, path)


@pytest.fixture(scope="module")
def salient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return salient_head(tmp_path_factory.mktemp("salient"))


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq", "awq+gptq"])
def test_calibration_saves_salient_channels(
    salient: Path, calibration_text: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    report = quantized(salient, out, calibration_text, method, lm_head_bits=4).report
    assert report.layout == "compressed-tensors" and report.lm_head is not None
    head = report.lm_head
    assert (head.bits, head.group_size, head.scheme) == (4, 32, "asymmetric")
    (linear,) = head.block.linears
    assert linear.name == "lm_head" and "lm_head" not in report.unquantized
    assert report.summary.quantized_linears == 14  # of the blocks
    assert linear.sqnr_db is not None and linear.rtn_sqnr_db is not None
    if method == "rtn":
        assert linear.sqnr_db == linear.rtn_sqnr_db
        return
    assert linear.sqnr_db > linear.rtn_sqnr_db + 1  # dB
    if method != "gptq":
        assert linear.exponent is not None and not linear.fell_back
        assert head.block.fold_change is not None and head.block.fold_change < FOLD_TOLERANCE


def test_the_fold_is_exact_and_the_error_is_the_reported_one(
    salient: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """By hand: s = norm before / norm after; codes / s stand for the original weight."""
    out = tmp_path / "out"
    report = quantized(salient, out, calibration_text, lm_head_bits=4).report
    before, after = load_file(salient / "model.safetensors"), load_file(out / "model.safetensors")
    scale = before["model.norm.weight"] / after["model.norm.weight"].astype(np.float32)
    assert scale.max() / scale.min() > 2
    checkpoint = Checkpoint.open(out)
    weight = dequantize(checkpoint.quantized("lm_head")) / scale
    original = before["lm_head.weight"]
    error = np.square(weight - original).sum() / np.square(original).sum()
    assert 1e-4 < error < 0.05  # 4 bits; a scale that is not undone gives about 1
    assert report.lm_head is not None
    # The whole model, its blocks unquantized: only the output layer's error is left.
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(salient, dtype=torch.float32).eval()
    text = Tokenizer(salient).encode(calibration_text.read_text()[: 8 * 64])
    ids = torch.tensor(text).reshape(8, 64)
    expected = logits(model, ids)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.from_numpy(after["model.norm.weight"]).float())
        model.lm_head.weight.copy_(torch.from_numpy(dequantize(checkpoint.quantized("lm_head"))))
    found = relative(logits(model, ids), expected) ** 2
    (linear,) = report.lm_head.block.linears
    assert linear.relative_mse is not None
    # Other passages of the calibration text than were drawn.
    assert linear.relative_mse / 1.5 < found < linear.relative_mse * 1.5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_untied(
    calibration_text: Path, tmp_path: Path, tied: bool, bits: int
) -> None:
    """Read by transformers and by the exporter: the embedding as it was, the head quantized."""
    model = build_model("llama", seed=3, tie_word_embeddings=tied)
    source, out = save_model(model, tmp_path / "model"), tmp_path / "out"
    options = {"scheme": "symmetric", "bits": 3, "lm_head_bits": bits}
    quantized(source, out, calibration_text, **options)
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    groups = config["quantization_config"]["config_groups"]
    assert [group["targets"] for group in groups.values()] == [["Linear"], ["lm_head"]]
    assert [group["weights"]["num_bits"] for group in groups.values()] == [3, bits]
    stored, originals = load_file(out / "model.safetensors"), model.state_dict()
    np.testing.assert_array_equal(
        stored["model.embed_tokens.weight"],
        originals["model.embed_tokens.weight"].half().numpy(),
    )
    expected = logits(restore(out), token_ids())
    bundle = awq_edge.export(
        out,
        tmp_path / "bundle",
        load_recipe(accuracy_level=0, activation_dtype="float32", context=64),
    )
    assert (bundle.manifest.bits, bundle.manifest.lm_head_bits) == (3, bits)
    ids = token_ids()[0].tolist()
    with open_session(bundle, SessionOptions(threads=1)) as session:  # type: ignore[attr-defined]
        found = torch.from_numpy(session.logits(ids, range(len(ids))))
    assert relative(found, expected[0]) < 1e-4
    pytest.importorskip("compressed_tensors", reason="needs Python 3.11")
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert relative(logits(read, token_ids()), expected) < EXACT_TOLERANCE


def test_every_architecture(tiny_model: Path, calibration_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = quantized(tiny_model, out, calibration_text, lm_head_bits=8).report
    assert report.lm_head is not None
    change = report.lm_head.block.fold_change
    assert change is not None and change < FOLD_TOLERANCE
    expected = logits(restore(tiny_model), token_ids())
    assert relative(logits(restore(out), token_ids()), expected) < 0.4
    arch = Checkpoint.open(out).decoder.architecture
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    targets = config["config_groups"]["group_1"]["targets"]
    if arch.vision is None:
        assert targets == ["lm_head"]
    else:  # as on disk, and as transformers' class has it
        assert targets == list(dict.fromkeys([arch.lm_head, "lm_head"]))
        tower = next(iter(arch.vision.parts))
        assert any(re.match(t.removeprefix("re:"), f"{tower}.x") for t in config["ignore"])


def test_an_input_that_is_no_norms_output(calibration_text: Path, tmp_path: Path) -> None:
    """OPT 350M: no final norm, but a projection. Clips alone, which still beat rounding."""
    sizes = {"word_embed_proj_dim": 32, "do_layer_norm_before": False}
    model = save_model(build_model("opt", **sizes), tmp_path / "model")
    out = tmp_path / "out"
    report = quantized(model, out, calibration_text, lm_head_bits=4).report
    assert report.lm_head is not None
    (linear,) = report.lm_head.block.linears
    assert linear.exponent is None and report.lm_head.block.fold_change == 0
    assert linear.sqnr_db is not None and linear.rtn_sqnr_db is not None
    assert linear.sqnr_db > linear.rtn_sqnr_db
    assert Checkpoint.open(out).quantized("lm_head").codes.shape == (128, 32)


def test_an_export_that_quantizes_calibrates_the_output_layer(
    salient: Path, calibration_text: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(group_size=32, samples=8, length=64, accuracy_level=0, lm_head_bits=4)
    bundle = awq_edge.export(salient, tmp_path / "bundle", recipe, calibration=calibration_text)
    assert (bundle.manifest.bits, bundle.manifest.lm_head_bits) == (4, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(salient, dtype=torch.float32).eval()
    ids = token_ids()[0].tolist()
    expected = logits(model, torch.tensor([ids]))[0]
    checkpoint = quantized(salient, tmp_path / "awq", calibration_text, format="awq").path
    rounded = awq_edge.export(
        checkpoint, tmp_path / "rounded", load_recipe(lm_head_bits=4, accuracy_level=0)
    )
    errors = {}
    for name, each in (("calibrated", bundle), ("rounded", rounded)):
        with open_session(each, SessionOptions(threads=1)) as session:  # type: ignore[attr-defined]
            found = torch.from_numpy(session.logits(ids, range(len(ids))))
        errors[name] = relative(found, expected)
    assert errors["calibrated"] < errors["rounded"]


def test_a_kept_output_layer_is_not_made_again(
    salient: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed while it writes ends with the same bytes, and runs no block."""
    from awq_edge.quantizer import stage

    options = {"lm_head_bits": 8}
    whole = quantized(salient, tmp_path / "whole", calibration_text, **options).path
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_config", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quantized(salient, tmp_path / "out", calibration_text, **options)
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(stage, "CalibrationStream", None)
        out = quantized(
            salient,
            tmp_path / "out",
            calibration_text,
            observer=lambda done, total, what: seen.append(what),
            **options,
        ).path
    assert seen == ["block 0, kept", "block 1, kept", "the output layer, kept", "writing"]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_run_killed_before_the_output_layer_continues_there(
    salient: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from awq_edge.quantizer import loop

    options = {"lm_head_bits": 8}
    whole = quantized(salient, tmp_path / "whole", calibration_text, **options).path

    work = loop.quantize_block

    def killed(task: BlockTask, *rest: Any, **options: Any) -> Any:
        if isinstance(task, OutputLayerTask):
            raise KeyboardInterrupt
        return work(task, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "quantize_block", killed)
        with pytest.raises(KeyboardInterrupt):
            quantized(salient, tmp_path / "out", calibration_text, **options)
    seen: list[str] = []
    out = quantized(
        salient,
        tmp_path / "out",
        calibration_text,
        observer=lambda done, total, what: seen.append(what),
        **options,
    ).path
    assert seen == ["block 0, kept", "block 1, kept", "the output layer", "writing"]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_number_format() -> None:
    asked, mixed = NumberFormat(3, 128, "asymmetric"), layouts()["compressed-tensors"]
    assert output_format(layouts()["awq"], asked, 4, 256) is None
    assert output_format(mixed, asked, 16, 256) is None
    assert output_format(mixed, asked, 4, 256) == NumberFormat(4, 128, "asymmetric")
    assert output_format(mixed, asked, 8, 256) == NumberFormat(8, 128, "symmetric")
    assert output_format(mixed, asked, 4, 192) == NumberFormat(4, 64, "asymmetric")
    assert output_format(mixed, asked, 4, 48) is None
    assert output_format(mixed, NumberFormat(4, 32, "symmetric"), 4, 128) == NumberFormat(
        4, 32, "symmetric"
    )


def test_layouts_that_do_not_hold_it(salient: Path, calibration_text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--lm-head-bits 8: the AutoAWQ layout has the output la"):
        quantized(salient, tmp_path / "out", calibration_text, format="awq", lm_head_bits=8)
    # Of the recipe alone it is a wish: AutoAWQ checkpoints have 16 bits there.
    assert load_recipe("cpu").quantization.lm_head_bits == 8
    report = quantized(salient, tmp_path / "out", calibration_text, "rtn").report
    assert (report.layout, report.lm_head) == ("awq", None)


def test_groups_that_do_not_fit_leave_16_bits(calibration_text: Path, tmp_path: Path) -> None:
    model = save_model(build_model("llama", hidden_size=48), tmp_path / "model")
    report = quantized(model, tmp_path / "out", calibration_text, "rtn", lm_head_bits=8).report
    assert report.lm_head is None
    assert report.unquantized["lm_head"] == "in_features 48 is not a multiple of 32"


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_a_weight_that_is_not_finite_is_named(
    salient: Path, calibration_text: Path, tmp_path: Path, method: str
) -> None:
    model = save_model(build_model("llama", tie_word_embeddings=False), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"][3, 3] = np.inf
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"'lm_head\.weight' has NaN or inf"):
        quantized(model, tmp_path / "out", calibration_text, method, lm_head_bits=8)
