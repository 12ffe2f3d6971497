"""What an export refuses before it works, by runtime."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge.errors import ConfigError, ModelError
from awq_edge.exporter.checks import check_model, check_recipe
from awq_edge.fit.models import find_model
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.recipe.recipes import Recipe, load_recipe
from tests.tiny_models import save_tiny_llama


class Planned:
    """A model as its config.json says it, unquantized."""

    path = Path("model")
    has_quantized = False

    def __init__(self, config: dict[str, Any]) -> None:
        self.decoder = decoder_from_config(config)

    def linear_names(self) -> list[str]:
        return []

    def is_quantized(self, name: str) -> bool:
        return False

    def linear_format(self, name: str) -> NumberFormat:
        raise KeyError(name)


@pytest.mark.parametrize("size", [2, 4, 6, 10, 12, 20])
def test_heads_that_onnxruntime_does_not_take_are_refused(tmp_path: Path, size: int) -> None:
    """ "head_size must be a multiple of 8", it says, when it runs."""
    pytest.importorskip("torch", reason="needs the [host] extra")
    model = save_tiny_llama(tmp_path / "model", head_size=size)
    with pytest.raises(ModelError, match=f"head size {size} is not a multiple of 8"):
        awq_edge.export(model, tmp_path / "bundle", awq_edge.load_recipe(method="none"))
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("size", [8, 24])
def test_other_heads_run(tmp_path: Path, size: int) -> None:
    pytest.importorskip("torch", reason="needs the [host] extra")
    model = save_tiny_llama(tmp_path / "model", head_size=size)
    bundle = awq_edge.export(model, tmp_path / "bundle", awq_edge.load_recipe(method="none"))
    assert awq_edge.load(bundle.path).generate("Once", max_new_tokens=2, ignore_eos=True).text


def test_a_folder_without_a_tokenizer_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the [host] extra")
    model = save_tiny_llama(tmp_path / "model")
    (model / "tokenizer.json").unlink()
    for method in ("none", "rtn", "awq"):
        with pytest.raises(ModelError) as refused:
            awq_edge.export(model, tmp_path / "bundle", awq_edge.load_recipe(method=method))
        assert f"{model} has no tokenizer.json; make one" in str(refused.value)
        assert "AutoTokenizer.from_pretrained(d).save_pretrained(d)" in str(refused.value)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_damaged_tokenizer_is_refused_too(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the [host] extra")
    model = save_tiny_llama(tmp_path / "model")
    shutil.copyfile(model / "config.json", model / "tokenizer.json")
    with pytest.raises(ModelError, match=r"is not a valid tokenizer\.json"):
        awq_edge.export(model, tmp_path / "bundle", awq_edge.load_recipe(method="none"))


@pytest.mark.parametrize(
    ("recipe", "changes", "types"),
    [
        ("cpu", {}, "float32"),
        ("rtx-4070-laptop-8gb", {}, "bfloat16"),
        ("jetson-orin-nano-8gb", {}, "bfloat16"),
        ("rtx-4070-laptop-8gb", {"export.linear": "native", "export.attention": "native",
                                 "quantization.method": "none"}, "bfloat16 or float32"),
    ],
)  # fmt: skip
def test_what_overflows_float16_is_told_a_type_that_the_runtime_has(
    recipe: str, changes: dict[str, Any], types: str
) -> None:
    gemma = Planned(dict(find_model("Gemma-3-1B").config))
    asked = load_recipe(recipe).overridden({"runtime.activation_dtype": "float16", **changes})
    with pytest.raises(ConfigError, match=rf"give --activation-dtype {types}$"):
        check_model(gemma, asked)
    given = asked.overridden({"runtime.activation_dtype": types.split()[0]})
    check_recipe(given)
    check_model(gemma, given)


def test_versions_that_graphs_are_not_made_for() -> None:
    old = load_recipe("jetson-orin-nano-8gb").overridden({"runtime.version": "8.6"})
    with pytest.raises(ConfigError, match=r"has version 8\.6 of runtime tensorrt"):
        check_recipe(old)
    rtx: Recipe = load_recipe("rtx-4090").overridden({"runtime.version": "10.16"})
    with pytest.raises(ConfigError, match="not one of TensorRT for RTX"):
        check_recipe(rtx)
