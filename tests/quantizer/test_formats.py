"""Bits, groups, schemes and layouts through the whole quantizer, and how other tools read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awq_edge.errors import ConfigError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import layouts
from awq_edge.model.w4a16 import NumberFormat

from .conftest import build_model, save_model
from .test_checkpoint_out import logits, quantized, restore

BITS = (2, 3, 4, 8)
# Both sides multiply the same codes and scales; transformers rounds the weights to the scales'
# float16 (2**-11 each) where it dequantizes while it loads.
EXACT_TOLERANCE, HALF_TOLERANCE = 1e-6, 2e-3


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model("llama", seed=3), tmp_path_factory.mktemp("llama"))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def token_ids() -> torch.Tensor:
    return torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq", "awq+gptq"])
def test_every_bit_width_by_every_method(
    llama: Path, calibration_text: Path, tmp_path: Path, method: str
) -> None:
    """A bit more quarters the squared error, 6 dB; each width is stored as it was measured."""
    sqnr = {}
    for bits in BITS:
        out = tmp_path / str(bits)
        checkpoint = quantized(llama, out, calibration_text, method, bits=bits)
        report, opened = checkpoint.report, Checkpoint.open(out)
        assert report.layout == ("awq" if bits == 4 else "compressed-tensors")
        assert opened.linear_format("model.layers.1.mlp.up_proj") == NumberFormat(
            bits, 32, "asymmetric"
        )
        assert opened.quantization is not None
        assert (opened.quantization.bits, opened.quantization.method) == (bits, method)
        found = report.summary.mean_sqnr_db
        assert found is not None
        sqnr[bits] = found
    assert 4 < sqnr[3] - sqnr[2] < 9 and 4 < sqnr[4] - sqnr[3] < 8  # dB
    assert 20 < sqnr[8] - sqnr[4] < 28


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", BITS)
def test_transformers_reads_what_was_measured(
    llama: Path, calibration_text: Path, tmp_path: Path, bits: int, scheme: str
) -> None:
    """transformers with compressed-tensors against our own reading of the same file.

    Packed zero points fit transformers 5.23 only where it dequantizes while it loads: otherwise it
    expects them unpacked and refuses them.
    """
    pytest.importorskip("compressed_tensors", reason="needs Python 3.11")
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    out = tmp_path / "out"
    options: dict[str, Any] = {}
    if scheme == "asymmetric":
        options = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    # While it loads, transformers dequantizes every linear by the format of the first group.
    head = {"lm_head_bits": 16 if options else 8}
    quantized(
        llama,
        out,
        calibration_text,
        "awq",
        bits=bits,
        scheme=scheme,
        format="compressed-tensors",
        **head,
    )
    expected = logits(restore(out), token_ids())
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, **options).eval()
    limit = HALF_TOLERANCE if options else EXACT_TOLERANCE
    assert relative(logits(model, token_ids()), expected) < limit


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_group_sizes(calibration_text: Path, tmp_path: Path, group_size: int) -> None:
    model = save_model(
        build_model("llama", hidden_size=128, intermediate_size=256), tmp_path / "model"
    )
    out = tmp_path / "out"
    report = quantized(model, out, calibration_text, bits=3, group_size=group_size).report
    assert report.unquantized == {}
    found = Checkpoint.open(out).quantized("model.layers.0.mlp.down_proj")
    assert found.group_size == group_size


def test_both_layouts_hold_the_same_codes(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    for name in layouts():
        quantized(llama, tmp_path / name, calibration_text, format=name)
    a, b = (Checkpoint.open(tmp_path / name) for name in layouts())
    for linear in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        one, other = a.quantized(linear), b.quantized(linear)
        for field in ("codes", "scales", "zeros"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_the_format_is_chosen_by_the_bits_or_refused(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    for bits in (2, 3, 8):
        with pytest.raises(
            ConfigError,
            match=rf"--format awq holds codes of 4 bits, not {bits}; give --format compressed",
        ):
            quantized(llama, tmp_path / "out", calibration_text, bits=bits, format="awq")
    with pytest.raises(ConfigError, match="allowed values: 'auto', 'awq' or 'compressed-tensors'"):
        quantized(llama, tmp_path / "out", calibration_text, format="gguf")
    assert not list(tmp_path.iterdir())


def test_compressed_tensors_holds_any_out_features(calibration_text: Path, tmp_path: Path) -> None:
    """172 output channels fill no whole words: a layout matter, unlike in_features and groups."""
    model = save_model(build_model("llama", intermediate_size=172), tmp_path / "model")
    out = tmp_path / "out"
    report = quantized(model, out, calibration_text, bits=3).report
    assert set(report.unquantized) == {f"model.layers.{layer}.mlp.down_proj" for layer in range(2)}
    assert (
        "172 is not a multiple of group_size 32"
        in report.unquantized["model.layers.0.mlp.down_proj"]
    )
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == list(report.unquantized)  # the output layer has the recipe's 8 bits
    assert Checkpoint.open(out).is_quantized("model.layers.0.mlp.up_proj")


def test_config_of_compressed_tensors_is_valid_there(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="needs Python 3.11")
    from compressed_tensors.quantization import QuantizationConfig

    options = {"bits": 3, "scheme": "symmetric", "lm_head_bits": 16}
    quantized(llama, tmp_path / "out", calibration_text, format="compressed-tensors", **options)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    read = QuantizationConfig.model_validate(config)
    assert (read.format, read.quantization_status.value) == ("pack-quantized", "compressed")
    (group,) = read.config_groups.values()
    assert group.targets == ["Linear"] and read.ignore == ["lm_head"]
    weights: Any = group.weights
    assert (weights.num_bits, weights.group_size, weights.symmetric) == (3, 32, True)
    assert (weights.strategy, weights.type, weights.actorder) == ("group", "int", None)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_transformers_knows_the_autoawq_config(
    llama: Path, calibration_text: Path, tmp_path: Path, scheme: str
) -> None:
    """And, where gptqmodel is installed, whose linears it uses for that, the same logits."""
    from transformers import AutoModelForCausalLM, AwqConfig

    out = tmp_path / "out"
    quantized(llama, out, calibration_text, scheme=scheme, format="awq")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    read = AwqConfig.from_dict(config)
    assert (read.bits, read.group_size, read.zero_point) == (4, 32, True)
    assert (read.quant_method.value, read.format) == ("awq", "gemm")
    assert read.modules_to_not_convert == ["lm_head"]
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed: it needs torch 2.14")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float16, device_map="cpu").eval()
    expected = logits(restore(out), token_ids())
    assert relative(logits(model, token_ids()).float(), expected) < HALF_TOLERANCE
