"""Models that a runtime has no place for are refused before the work, by one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.errors import ModelError
from awq_edge.exporter import checks_cuda, lower_cuda
from awq_edge.exporter.canonical import GraphSpec
from awq_edge.exporter.checks_cuda import beyond_llama
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.archs.base import Architecture
from awq_edge.model.archs.decoder import Decoder
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import load_recipe
from tests.arch_configs import tiny_config

from .conftest import Export
from .models import TINY, save_random_model, tiny_decoder


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
        ("granite", "scaled embeddings, a residual multiplier, scaled logits"),
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


def test_the_cuda_runtime_lacks_what_its_lowering_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its programs have a place for, by name, is read when one is built."""
    model = save_random_model(tmp_path / "model", "qwen3")
    checkpoint, recipe = Checkpoint.open(model), load_recipe("cuda")
    read: dict[type, set[str]] = {Architecture: set(), Decoder: set()}

    def recorded(self: object, name: str) -> object:
        read[type(self)].add(name)
        return object.__getattribute__(self, name)

    spec = GraphSpec(context=64, activation_dtype="float16", lm_head_bits=16)
    for kind in read:
        monkeypatch.setattr(kind, "__getattribute__", recorded)
    lower_cuda.build(checkpoint, spec, recipe)
    assert read[Decoder] >= checks_cuda.PROGRAM_FIELDS
    assert read[Architecture] >= checks_cuda.PROGRAM_NAMES
    read[Architecture].clear()
    decoder_from_config(checkpoint.files.config)
    for name in ("llama", "phi3", "gemma3_text", "opt", "granite"):
        decoder_from_config({"model_type": name, **tiny_config(name, TINY)})
    assert read[Architecture] >= checks_cuda.RESOLVED
