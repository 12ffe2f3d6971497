"""Fixtures of the export tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awq_edge.artifacts.directories import Bundle
from awq_edge.exporter.bundle import export_checkpoint
from awq_edge.exporter.checks_cuda import lacking_operations
from awq_edge.exporter.lowerings import require_lowering
from awq_edge.model.archs import Decoder, architectures
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.program.build import build_program
from awq_edge.program.formats import planned_formats
from awq_edge.recipe.recipes import Recipe, load_recipe

from .models import MAX_POSITIONS, save_quantized, save_random_model, tiny_decoder

Export = Callable[..., Bundle]


def parity_recipe(**overrides: object) -> Recipe:
    """The CPU recipe at accuracy level 0, with a prefill chunk that texts of tests exceed."""
    keys: dict[str, object] = {"runtime.accuracy_level": 0, "export.prefill_chunk": 32}
    return load_recipe("cpu").overridden(keys | overrides)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Export a checkpoint into tmp_path/bundle, lm_head unquantized unless told otherwise."""

    def run(checkpoint: Path, recipe: Recipe | None = None, **arguments: Any) -> Bundle:
        options = {"lm_head_bits": 16, **arguments}
        overwrite = options.pop("overwrite", True)
        asked = (recipe or parity_recipe()).asking(**options)
        return export_checkpoint(
            checkpoint, tmp_path / "bundle", asked, model_name="tiny", overwrite=overwrite
        )

    return run


def lowering_of(runtime: str) -> Any:
    """The module of a runtime's lowering."""
    return sys.modules[require_lowering(runtime).__module__]


def cuda_lacks(decoder: Decoder) -> list[str]:
    """The operations of a model that runtime cuda does not have."""
    recipe = load_recipe("cuda").overridden({"export.context": MAX_POSITIONS})
    quantization = recipe.quantization.model_copy(update={"group_size": 32})
    formats = planned_formats(decoder, quantization, 16)
    return lacking_operations(build_program(decoder, formats), recipe)


def cuda_types() -> list[str]:
    """Those that runtime cuda has every operation of."""
    return [name for name in architectures() if not cuda_lacks(tiny_decoder(name))]


@pytest.fixture(scope="session", params=architectures())
def model_type(request: pytest.FixtureRequest) -> str:
    """Every architecture that can be exported."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantized tiny model of the architecture."""
    return save_random_model(tmp_path_factory.mktemp(model_type), model_type)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quantized checkpoint of `tiny_model`."""
    return save_quantized(tiny_model, tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="session")
def plugin_model(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_model`, with heads of a size that the kernels have."""
    heads = {} if tiny_decoder(model_type).head_size == 32 else {"num_attention_heads": 2}
    path = save_random_model(tmp_path_factory.mktemp(model_type), model_type, **heads)
    assert Checkpoint.open(path).decoder.head_size == 32
    return path


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantized tiny llama."""
    return save_random_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def llama_checkpoint(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized tiny llama."""
    return save_quantized(llama, tmp_path_factory.mktemp("llama-quantized"))


@pytest.fixture(scope="session")
def awkward(stories_or_none: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260k where it is there, or else a random model of its sizes: head size 8, FFN 172."""
    if stories_or_none is not None:
        return stories_or_none
    return save_random_model(
        tmp_path_factory.mktemp("awkward"),
        "llama",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
