"""Linears of different widths on the whole road: quantized, read by others, exported, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import awq_edge
from awq_edge.errors import ConfigError
from awq_edge.fit.assess import TIGHT_SHARE
from awq_edge.fit.fit import Asked, fit
from awq_edge.fit.models import find_model
from awq_edge.fit.planner import Planner
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import NumberFormat, dequantize
from awq_edge.program.formats import stored_formats
from awq_edge.quantizer import stage
from awq_edge.quantizer.budget.losses import measure_losses
from awq_edge.quantizer.checkpoint.resume import BlockStore
from awq_edge.quantizer.report.page import PAGE_FILE
from awq_edge.quantizer.report.schema import QuantizationReport
from awq_edge.recipe.recipes import load_recipe

from ..conftest import build_model, save_model
from ..test_checkpoint_out import logits, quantized, restore

# Both sides multiply the same codes and scales.
EXACT_TOLERANCE = 1e-6
BITS = 4.0  # between 3 and 4 bits, with scales and zero points
RECIPE = load_recipe("cuda", bits_per_weight=BITS, activation_dtype="float16")
FILES = ("model.safetensors", "config.json")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model(
        "llama", seed=3, num_hidden_layers=4, hidden_size=128, intermediate_size=256
    )
    return save_model(model, tmp_path_factory.mktemp("llama"))


def mixed(model: Path, out: Path, text: Path, **options: Any) -> QuantizationReport:
    return quantized(model, out, text, "gptq", recipe=RECIPE, **options).report


@pytest.fixture(scope="module")
def checkpoint(
    llama: Path, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Symmetric, as transformers reads linears that differ."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    mixed(llama, out, calibration_text, scheme="symmetric")
    return out


def report_of(path: Path) -> QuantizationReport:
    text = (path / "quantization_report.json").read_text()
    return QuantizationReport.model_validate_json(text)


def test_each_linear_has_the_format_that_the_report_says(checkpoint: Path) -> None:
    report, opened = report_of(checkpoint), Checkpoint.open(checkpoint)
    choice = report.choice
    assert choice is not None and report.layout == "compressed-tensors"
    linears = {
        f"{opened.decoder.layer_prefix(block.layer)}.{linear.name}": linear
        for block in report.blocks
        for linear in block.linears
    }
    widths = set()
    for unit in choice.units:
        for name in opened.decoder.inputs(unit.layer)[unit.group]:
            full = f"{opened.decoder.layer_prefix(unit.layer)}.{name}"
            number_format = opened.linear_format(full)
            expected = NumberFormat(unit.offer.bits, unit.offer.group_size, "symmetric")
            assert number_format == expected
            assert (linears[full].bits, linears[full].group_size) == (
                unit.offer.bits,
                unit.offer.group_size,
            )
            widths.add(number_format.bits)
    assert len(widths) > 1  # else nothing here is mixed
    assert choice.chosen_bytes <= choice.budget_bytes
    assert choice.bits_per_weight <= BITS
    assert opened.main_format == NumberFormat(report.bits, report.group_size, "symmetric")


def test_more_bits_go_where_an_error_costs_more(checkpoint: Path) -> None:
    """The choice loses less than any uniform one of as few bytes, by its own estimate."""
    choice = report_of(checkpoint).choice
    assert choice is not None and choice.exact
    within = [each for each in choice.uniform if each.bytes <= choice.budget_bytes]
    assert within and all(choice.loss < each.loss for each in within)


def test_the_page_and_the_table_show_the_choice(checkpoint: Path) -> None:
    choice = report_of(checkpoint).choice
    assert choice is not None
    page = (checkpoint / PAGE_FILE).read_text()
    for words in (*choice.formats(), *choice.counts(), "Chosen bits"):
        assert words in page
    rows = page.partition('id="choices"')[2].partition("</table>")[0]
    assert rows.count("<tr>") == 1 + len({unit.layer for unit in choice.units})


def test_transformers_reads_linears_that_differ(checkpoint: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs Python 3.11")
    from transformers import AutoModelForCausalLM

    ids = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(5))
    expected = logits(restore(checkpoint), ids)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = logits(model, ids)
    assert float((found - expected).norm() / expected.norm()) < EXACT_TOLERANCE


def test_the_package_reads_zero_points_of_linears_that_differ(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """By its own matching of targets, linear by linear, as vLLM does.

    transformers 5.23 dequantizes all by the format of the first group where there are zero points.
    """
    pytest.importorskip("compressed_tensors", reason="needs Python 3.11")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    out = tmp_path / "out"
    report = mixed(llama, out, calibration_text)
    assert report.choice is not None and len(report.choice.formats()) > 1
    opened = Checkpoint.open(out)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) >= len(report.choice.formats())
    with torch.device("meta"):
        model = build_meta(llama)
    apply_quantization_config(model, QuantizationConfig.model_validate(config))
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    names = [*opened.linear_names(), "lm_head"]
    for name in names:
        scheme = model.get_submodule(name).quantization_scheme
        stored = {
            key.rpartition(".")[2]: torch.from_numpy(opened.files.read(key))
            for key in opened.files.entries
            if key.rpartition(".")[0] == name and not key.endswith(".bias")
        }
        found = compressor.decompress(stored, scheme)["weight"].float()
        expected = torch.from_numpy(dequantize(opened.quantized(name)))
        # Dequantized in the scales' float16.
        assert float((found - expected).norm() / expected.norm()) < 1e-3, name


def build_meta(path: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))


@pytest.mark.parametrize("recipe", ["cpu", "cuda", "jetson-orin-nano-8gb"])
def test_runtimes_take_linears_that_differ(checkpoint: Path, tmp_path: Path, recipe: str) -> None:
    bundle = awq_edge.export(checkpoint, tmp_path / "bundle", load_recipe(recipe, context=64))
    opened = Checkpoint.open(checkpoint)
    main = opened.main_format
    others = {
        name: str(opened.linear_format(name))
        for name in opened.linear_names()
        if opened.linear_format(name) != main
    }
    assert others and bundle.manifest.other_formats == others
    # And `fit` counts them so, from config.json alone.
    config = json.loads((checkpoint / "config.json").read_text())
    formats = stored_formats(opened.decoder, config, 8, checkpoint)
    assert formats is not None
    sizes = Planner(opened.decoder, formats, load_recipe(recipe)).sizes(64)
    assert sizes.part_bytes == bundle.manifest.part_bytes


def test_what_was_chosen_for_a_device_fits_it(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """By the verdict of `fit` on the checkpoint, which the same device refuses in 8 bits."""
    needed = [
        fit(find_model(str(llama)), load_recipe("cpu"), Asked(bits, 32, 8, context=128))
        for bits in (4, 8)
    ]
    total = sum(report.predicted_bytes.total for report in needed) // 2
    device = tmp_path / "board.toml"
    device.write_text(
        'extends = "cpu"\ndescription = "A board for 4 bits, not for 8"\n[device]\n'
        f'memory_bytes = "{int(total / (1 - TIGHT_SHARE)) + 2} B"\nsystem_reserved_bytes = "0 B"\n'
    )
    options = {"fit": str(device), "context": 128, "lm_head_bits": 8}
    recipe = load_recipe(**options)
    out = tmp_path / "out"
    choice = quantized(llama, out, calibration_text, "gptq", recipe=recipe).report.choice
    assert choice is not None and len(choice.formats()) > 1
    verdict = fit(find_model(str(out)), recipe, Asked(context=128))
    assert verdict.verdict == "fits"
    wider = fit(find_model(str(llama)), recipe, Asked(8, 32, 8, context=128))
    assert wider.verdict != "fits"
    assert 0 <= verdict.free_bytes - wider.free_bytes


def test_an_export_quantizes_by_a_budget_too(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(
        "cpu", bits_per_weight=6.0, method="gptq", samples=4, length=64, context=64
    )
    bundle = awq_edge.export(llama, tmp_path / "bundle", recipe, calibration=calibration_text)
    report = report_of(bundle.path)
    assert report.choice is not None and report.choice.runtime == "onnxruntime"
    assert set(report.choice.formats()) <= {
        f"{bits}-bit, g{size}" for bits in (2, 4, 8) for size in (32, 64, 128)
    }
    stored = 8 * bundle.manifest.part_bytes["blocks"]
    weights = sum(
        linear.in_features * linear.out_features
        for layer in range(4)
        for linear in Checkpoint.open(llama).decoder.linears(layer)
    )
    assert stored / weights > report.choice.bits_per_weight  # norms and biases beside them
    with pytest.raises(ConfigError, match=r"--bits-per-weight 6\.0: .* is quantized already"):
        awq_edge.export(
            quantized(llama, tmp_path / "rtn", calibration_text, "rtn").path,
            tmp_path / "again",
            load_recipe("cpu", bits_per_weight=6.0),
        )


def test_a_device_of_another_recipe_is_refused(llama: Path, tmp_path: Path) -> None:
    recipe = load_recipe("cuda", fit="jetson-orin-nano-8gb")
    with pytest.raises(ConfigError, match="the bundle would be for another device"):
        awq_edge.export(llama, tmp_path / "bundle", recipe)
    assert not list(tmp_path.iterdir())


def test_a_method_without_outputs_is_refused(
    llama: Path, calibration_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--method rtn contradicts .* looks at no outputs"):
        quantized(llama, tmp_path / "out", calibration_text, "rtn", recipe=RECIPE)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"--context 64 .* --fit"):
        quantized(llama, tmp_path / "out", calibration_text, context=64)


class _Killed(BaseException):
    pass


def test_an_interrupted_run_keeps_its_choice(
    llama: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are measured once; blocks before and behind the interruption fit together."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    mixed(llama, whole, calibration_text)
    save = BlockStore.save

    def killed(self: BlockStore, layer: int, *rest: Any) -> None:
        if layer == 2:
            raise _Killed
        save(self, layer, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(BlockStore, "save", killed)
        with pytest.raises(_Killed):
            mixed(llama, out, calibration_text)
    assert not out.exists()
    measured = []

    def counted(*arguments: Any) -> Any:
        measured.append(arguments)
        return measure_losses(*arguments)

    monkeypatch.setattr(stage, "measure_losses", counted)
    told: list[str] = []
    report = mixed(
        llama, out, calibration_text, observer=lambda done, total, what: told.append(what)
    )
    assert not measured and told[:2] == ["block 0, kept", "block 1, kept"]
    for file in FILES:
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert report.choice == report_of(whole).choice
    # Another budget measures again.
    quantized(
        llama, tmp_path / "other", calibration_text, "gptq",
        recipe=RECIPE.asking(bits_per_weight=BITS + 1),
    )  # fmt: skip
    assert len(measured) == 1
    assert report_of(tmp_path / "other").inputs_sha256 != report.inputs_sha256
