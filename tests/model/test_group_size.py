"""Which group size a model gets, and what is said of the linears that it leaves in 16 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import awq_edge
from awq_edge.cli import app
from awq_edge.errors import ConfigError
from awq_edge.fit.fit import Asked, fit
from awq_edge.fit.models import all_known, find_model
from awq_edge.kernels import interface
from awq_edge.model.archs import architectures, decoder_from_config
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.group_size import (
    GROUP_SIZES,
    GroupChoice,
    choose_group_size,
    coverage,
    planned_coverage,
)
from awq_edge.model.layouts import layouts
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.program.matmul_nbits import SMALLEST_BLOCK, largest_block
from awq_edge.recipe.recipes import Recipe, list_recipes, load_recipe
from tests.tiny_models import save_tokenizer

CPU = load_recipe("cpu")
COMPRESSED = CPU.overridden({"quantization.format": "compressed-tensors"})


def config(hidden: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        **more,
    }


def chosen(recipe: Recipe, hidden: int, inner: int) -> int:
    return choose_group_size(recipe, decoder_from_config(config(hidden, inner))).size


def save(path: Path, hidden: int, inner: int) -> Path:
    transformers = pytest.importorskip("transformers", reason="needs the [host] extra")
    settings = config(hidden, inner, tie_word_embeddings=False)
    del settings["model_type"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.save_pretrained(path)
    return save_tokenizer(path)


@pytest.mark.parametrize("recipe", [CPU, COMPRESSED], ids=["awq", "compressed-tensors"])
def test_the_largest_size_that_divides_every_input(recipe: Recipe) -> None:
    heads = {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }  # o_proj reads 128 channels
    for hidden, inner, size in ((256, 384, 128), (576, 1536, 64), (64, 128, 64), (96, 160, 32)):
        decoder = decoder_from_config(config(hidden, inner, **heads))
        choice = choose_group_size(recipe, decoder)
        assert choice.size == size
        assert (choice.note is None) == (size == 128)


def test_a_recipe_that_asks_for_less_gets_no_more() -> None:
    """64 is the recipe's word where it fits, though 128 would, too."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    small = CPU.resolved({"quantization.group_size": 64})
    assert choose_group_size(small, decoder_from_config(config(256, 384, **heads))).size == 64
    odd = decoder_from_config(config(96, 384, **heads))
    assert choose_group_size(small, odd).size == 32
    asked = CPU.overridden({"quantization.group_size": 64})
    assert choose_group_size(asked, odd) == GroupChoice(64, None)


def test_where_none_divides_them_all_the_one_that_quantizes_most_weights() -> None:
    # down_proj reads 172: no size fits it. Of the others 32 fits all.
    assert chosen(COMPRESSED, 64, 172) == 32
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    # Nothing but the inputs of 172 is left by each of the three: the recipe's own.
    assert choose_group_size(COMPRESSED, decoder_from_config(config(256, 172, **heads))).size == 128
    # hidden 80 and 172 fit nothing; o_proj, 128 channels, fits all.
    assert choose_group_size(COMPRESSED, decoder_from_config(config(80, 172, **heads))).size == 128


def test_rows_that_the_layout_cannot_hold_do_not_decide() -> None:
    """AutoAWQ holds no linear whose out_features is no multiple of 8, in whatever groups."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    assert choose_group_size(CPU, decoder_from_config(config(256, 172, **heads))).size == 128


def test_the_note_counts_linears_and_weights() -> None:
    decoder = decoder_from_config(
        config(576, 1536, num_attention_heads=9, head_dim=64, num_key_value_heads=3)
    )
    note = choose_group_size(CPU, decoder).note
    assert note is not None and note.startswith("groups of 64, not the recipe's 128, which would ")
    assert "12 of 14 linears, 75.0% of the blocks' weights" in note


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_every_model_of_the_table_gets_groups_for_all_of_it(recipe: Recipe) -> None:
    """And what is chosen is never worse than another size."""
    for model in all_known():
        size = choose_group_size(recipe, model.decoder).size
        left = {
            each: planned_coverage(
                model.decoder, layouts()["awq"], NumberFormat(4, each, "asymmetric")
            ).dense_weights
            for each in GROUP_SIZES
        }
        assert left[size] == min(left.values()), model.name


def test_every_runtime_takes_every_size() -> None:
    assert set(GROUP_SIZES) <= set(interface.GROUP_SIZES)
    assert all(largest_block(size) == size >= SMALLEST_BLOCK for size in GROUP_SIZES)


def test_counts_of_names_and_of_kinds_agree() -> None:
    """Also where only some layers have experts."""
    assert "qwen3_moe" in architectures()
    decoder = decoder_from_config(
        {
            **config(96, 160),
            "model_type": "qwen3_moe",
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 80,
            "decoder_sparse_step": 2,
        }
    )
    layout, number_format = layouts()["compressed-tensors"], NumberFormat(4, 32, "asymmetric")
    reasons = {
        f"{decoder.layer_prefix(layer)}.{linear.name}": reason
        for layer in range(4)
        for linear in decoder.linears(layer)
        if (reason := layout.obstacle(linear.out_features, linear.in_features, number_format))
    }
    assert len(reasons) == 2 * 4  # down_proj of the experts reads 80
    named, planned = coverage(decoder, reasons), planned_coverage(decoder, layout, number_format)
    assert named == planned
    assert named.dense_weights == 8 * 80 * 96


def test_quantize_export_and_fit_take_the_same_size(tmp_path: Path) -> None:
    model = save(tmp_path / "model", 96, 160)
    report = awq_edge.quantize(model, tmp_path / "out", awq_edge.load_recipe(method="rtn")).report
    assert report.group_size == 32 and not report.unquantized
    assert len(report.notes) == 1 and "groups of 32, not the recipe's 128" in report.notes[0]
    assert report.summary.unquantized_weights == 0
    predicted = fit(find_model(str(model)), CPU, Asked())
    assert predicted.settings.group_size == 32
    assert report.notes[0] in predicted.notes
    bundle = awq_edge.export(model, tmp_path / "bundle", awq_edge.load_recipe(method="rtn"))
    assert bundle.manifest.group_size == 32
    assert set(bundle.manifest.unquantized) == set()


def test_a_size_that_was_asked_for_is_obeyed_and_counted(tmp_path: Path) -> None:
    model = save(tmp_path / "model", 96, 128)
    run = CliRunner().invoke(
        app,
        f"quantize {model} --out {tmp_path / 'out'} --method rtn --group-size 128".split(),
    )
    assert run.exit_code == 0, run.output
    # Only down_proj reads 128 channels.
    total, down = 2 * (96 * 32 * 4 + 3 * 96 * 128), 2 * 96 * 128
    text = " ".join(run.output.split())
    assert "not the recipe's" not in text
    for count, width in ((10, 96), (2, 32)):
        weights = 2 * (96 * 32 * 3 + 2 * 96 * 128) if width == 96 else 2 * 96 * 32
        share = f"{weights / total:.1%} of the blocks' weights"
        assert (
            f"{count} of 14 linears, {share}, stay in 16 bits: in_features "
            f"{width} is not a multiple of group_size 128"
        ) in text
    report = json.loads((tmp_path / "out/quantization_report.json").read_text())
    assert report["group_size"] == 128 and report["notes"] == []
    assert report["summary"]["quantized_weights"] == down
    assert report["summary"]["unquantized_weights"] == total - down
    notes = fit(find_model(str(model)), CPU, Asked(group_size=128)).notes
    assert any(note.startswith(f"12 of 14 linears, {1 - down / total:.1%} of") for note in notes)


@pytest.mark.parametrize("command", ["quantize", "export"])
def test_a_model_of_which_nothing_fits_is_refused(tmp_path: Path, command: str) -> None:
    model, out = save(tmp_path / "model", 48, 80), tmp_path / "out"
    # o_proj reads two heads of 16 channels: 32 would fit it alone.
    asked = f"{command} {model} --out {out} --method rtn --group-size 64".split()
    run = CliRunner().invoke(app, asked)
    assert isinstance(run.exception, ConfigError) or run.exit_code == 2
    text = str(run.exception) if isinstance(run.exception, ConfigError) else run.output
    assert "none of the 14 linears" in " ".join(text.split())
    assert "--group-size 32" in text
    assert not out.exists()
    with pytest.raises(ConfigError, match="groups of 64 quantize none of the 14 linears"):
        fit(find_model(str(model)), CPU, Asked(group_size=64))


def test_a_model_that_no_size_fits_is_told_to_stay_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model"
    transformers = pytest.importorskip("transformers", reason="needs the [host] extra")
    settings = {**config(48, 80), "head_dim": 24, "tie_word_embeddings": False}
    del settings["model_type"]
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).save_pretrained(path)
    save_tokenizer(path)
    assert Checkpoint.open(path).decoder.hidden_size == 48
    with pytest.raises(ConfigError, match="--method none"):
        awq_edge.quantize(path, tmp_path / "out", awq_edge.load_recipe(method="rtn"))
    with pytest.raises(ConfigError, match="--method none"):
        awq_edge.export(path, tmp_path / "out", awq_edge.load_recipe(method="rtn"))
    with pytest.raises(ConfigError, match="--method none"):
        fit(find_model(str(path)), CPU, Asked())
    assert not (tmp_path / "out").exists()
    assert fit(find_model(str(path)), CPU, Asked(bits=16)).settings.bits == 16
