"""Models whose graph is not there yet are refused before the work, by one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import awq_edge
from awq_edge.errors import ModelError
from awq_edge.exporter import supported
from awq_edge.exporter.supported import beyond_llama
from awq_edge.recipe.recipes import load_recipe

from .conftest import Export, exported_types
from .models import save_random_model, tiny_decoder

# What the graph has; an entry is added when its graph is built.
EXPORTED = {
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"),
    *("qwen3_moe", "mixtral", "opt", "qwen2_vl", "llava"),
}


def test_what_was_supported_stays_so() -> None:
    assert set(exported_types()) >= EXPORTED


def test_others_are_refused_before_they_are_quantized(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture whose graph is not built yet."""
    monkeypatch.setattr(supported, "NOT_YET", frozenset({"experts"}))
    model = save_random_model(tmp_path / "model", "mixtral")
    message = "the graph does not have yet what its model_type 'mixtral' needs: experts; "
    with pytest.raises(ModelError) as refused:
        export(model)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ModelError) as refused:
        # A model without a tokenizer: the quantizer would ask for it.
        awq_edge.export(model, tmp_path / "out", method="awq")
    assert message in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("model_type", "what"),
    [
        ("gemma2", "soft caps"),
        ("gemma2", "norms with an offset"),
        ("gemma2", "norms behind attention and MLP"),
        ("gemma3_text", "a rotary embedding of its own for layers with a window"),
        ("gemma3_text", "scaled embeddings"),
        ("mixtral", "experts"),
        ("opt", "LayerNorm"),
        ("opt", "learned positions"),
        ("opt", "an MLP without a gate"),
        ("phi3", "fused projections"),
        ("llava", "a vision tower"),
    ],
)
def test_the_cuda_runtime_names_what_it_lacks(
    model_type: str, what: str, tmp_path: Path, export: Export
) -> None:
    """The canonical graph has more than the kernels' program has a place for."""
    model = save_random_model(tmp_path / "model", model_type)
    recipe = load_recipe("cuda")
    with pytest.raises(ModelError, match="export it with --runtime onnxruntime") as refused:
        export(model, recipe)
    assert what in str(refused.value) and "\n" not in str(refused.value)


def test_others_have_nothing_beyond_llama() -> None:
    for model_type in ("llama", "mistral", "qwen2", "qwen3"):
        assert beyond_llama(tiny_decoder(model_type)) == ()
