"""Models that a runtime has no place for are refused before the work, by one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.errors import ModelError
from awq_edge.exporter.checks import beyond_llama
from awq_edge.recipe.recipes import load_recipe

from .conftest import Export
from .models import save_random_model, tiny_decoder


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
