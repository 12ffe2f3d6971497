"""Weights that cannot be quantized: NaN anywhere, values beyond what a scale holds.

One line with the tensor's name, before anything is searched; the advice is for what is wrong.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import awq_edge
from awq_edge.errors import ModelError
from awq_edge.recipe.recipes import load_recipe
from tests.tiny_models import save_tiny_llama

SMALL: dict[str, Any] = {"group_size": 32, "samples": 4, "length": 16}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("whole") / "model")


def changed(model: Path, copy: Path, name: str, value: float) -> Path:
    """A bfloat16 copy of a model with one value of a tensor replaced."""
    shutil.copytree(model, copy)
    tensors = {n: t.bfloat16() for n, t in load_file(copy / "model.safetensors").items()}
    tensors[name].view(-1)[7] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.mlp.down_proj.weight",
    ],
)
@pytest.mark.parametrize("method", ["awq", "rtn"])
def test_nan_is_named_wherever_it_is(
    whole: Path, tmp_path: Path, name: str, value: float, method: str
) -> None:
    model = changed(whole, tmp_path / "model", name, value)
    with pytest.raises(ModelError, match=rf"'{name}' has NaN or inf; the file is damaged") as error:
        awq_edge.quantize(model, tmp_path / "out", load_recipe(method=method, **SMALL))
    assert "bfloat16" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq", "rtn"])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.weight"]
)
def test_a_scale_beyond_fp16_is_one_line(
    whole: Path, tmp_path: Path, name: str, method: str
) -> None:
    """bfloat16 has 1e6; a group with it has a scale of 66,667 in 4 bits, and of 3,922 in 8."""
    model = changed(whole, tmp_path / "model", name, 1e6)
    message = (
        rf"'{name}' has values up to 9.99e\+05, .* overflows fp16 .* in 4 bits; give --bits 8, or"
    )
    with pytest.raises(ModelError, match=message):
        awq_edge.quantize(model, tmp_path / "out", load_recipe(method=method, **SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    report = awq_edge.quantize(
        model, tmp_path / "out", load_recipe(method="rtn", bits=8, group_size=32)
    ).report
    assert report.bits == 8


def test_a_value_that_no_bits_hold(whole: Path, tmp_path: Path) -> None:
    model = changed(whole, tmp_path / "model", "model.layers.1.mlp.up_proj.weight", 1e9)
    with pytest.raises(ModelError, match="no number of bits here holds it: look at the model"):
        awq_edge.quantize(model, tmp_path / "out", load_recipe(**SMALL))


def test_an_output_layer_beyond_fp16(whole: Path, tmp_path: Path) -> None:
    model = changed(whole, tmp_path / "model", "lm_head.weight", 1e6)
    with pytest.raises(ModelError, match=r"'lm_head\.weight' has values up to 9.99e\+05"):
        awq_edge.quantize(model, tmp_path / "out", load_recipe(lm_head_bits=4, **SMALL))


def test_a_model_without_a_tokenizer(whole: Path, tmp_path: Path) -> None:
    """Rounding needs none; what would become of the checkpoint does."""
    model = changed(whole, tmp_path / "model", "lm_head.weight", 0.0)
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        awq_edge.quantize(model, tmp_path / "out", load_recipe(method="rtn", group_size=32))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tied_output_layer_is_counted_once(tmp_path: Path) -> None:
    """Stored in 8 bits it is a weight of its own, and no further parameters."""
    from awq_edge.fit.models import find_model
    from awq_edge.inspect.artifact import inspect_artifact

    path = save_tied_llama(tmp_path / "model")
    expected = inspect_artifact(path).parameters
    checkpoint = awq_edge.quantize(
        path,
        tmp_path / "checkpoint",
        load_recipe(method="rtn", lm_head_bits=8, group_size=32),
    )
    assert checkpoint.report.lm_head is not None and checkpoint.report.lm_head.tied is True
    bundle = awq_edge.export(checkpoint.path, tmp_path / "bundle").path
    for made in (checkpoint.path, bundle):
        found = inspect_artifact(made)
        assert found.parameters == expected
        assert found.bits_per_weight == pytest.approx(8 * found.weight_bytes / expected, rel=0.02)
    assert find_model(str(checkpoint.path)).parameters == expected


@pytest.mark.parametrize("bits", [2, 4, None])
def test_a_copied_output_layer_of_another_tool_is_counted_once(
    tmp_path: Path, bits: int | None
) -> None:
    """No report says that it was tied: its weights do, quantized or not (None)."""
    from awq_edge.fit.models import find_model
    from awq_edge.inspect.artifact import inspect_artifact

    path = save_tied_llama(tmp_path / "model")
    expected = inspect_artifact(path).parameters
    if bits is None:
        tensors = load_file(path / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        config = path / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False})
        )
    else:
        source, path = path, tmp_path / "checkpoint"
        awq_edge.quantize(
            source,
            path,
            load_recipe(
                method="rtn",
                bits=bits,
                lm_head_bits=max(4, bits),
                group_size=32,
                format="compressed-tensors",
            ),
        )
        (path / "quantization_report.json").unlink()
    bundle = awq_edge.export(
        path, tmp_path / "bundle", load_recipe(lm_head_bits=None if bits else 8)
    ).path
    assert inspect_artifact(path).parameters == expected
    assert inspect_artifact(bundle).parameters == expected
    assert find_model(str(path)).parameters == expected


def save_tied_llama(directory: Path) -> Path:
    """A tiny Llama whose output layer is its embedding."""
    save_tiny_llama(directory)
    tensors = load_file(directory / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    return directory


def test_errors_that_no_text_survives_are_warned_of(whole: Path, tmp_path: Path) -> None:
    few = awq_edge.quantize(whole, tmp_path / "few", load_recipe(bits=2, **SMALL)).report
    (warning,) = few.warnings
    assert "the outputs of the linears are off by more than 3%" in warning
    assert "in 2 of 2 blocks" in warning
    many = awq_edge.quantize(whole, tmp_path / "many", load_recipe(bits=8, **SMALL)).report
    assert many.warnings == ()


def test_a_perplexity_that_has_doubled_is_warned_of(whole: Path, tmp_path: Path) -> None:
    from awq_edge.quantizer.report.schema import PerplexityComparison, report_warnings

    report = awq_edge.quantize(
        whole, tmp_path / "out", load_recipe(method="rtn", bits=8, group_size=32)
    ).report
    row = PerplexityComparison(
        text="t.txt",
        text_sha256="",
        tokens=9,
        window=8,
        stride=4,
        dtype="float32",
        original=10.0,
        quantized=19.0,
    )
    assert report_warnings(report.model_copy(update={"perplexities": (row,)})) == ()
    for value in (21.0, float("inf"), float("nan")):
        worse = row.model_copy(update={"quantized": value})
        (warning,) = report_warnings(report.model_copy(update={"perplexities": (worse,)}))
        assert warning.startswith("the perplexity of t.txt is")
