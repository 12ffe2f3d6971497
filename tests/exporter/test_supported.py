"""Models that a runtime has no operations for are refused before the work, by one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.errors import ModelError
from awq_edge.model.archs import architectures
from awq_edge.recipe.recipes import load_recipe
from awq_edge.runtime.backends.cuda import operations

from .conftest import Export, cuda_lacks
from .models import save_random_model, tiny_decoder


def test_runtime_cuda_takes_every_architecture() -> None:
    lacking = {name: cuda_lacks(tiny_decoder(name)) for name in architectures()}
    assert lacking == {name: [] for name in architectures()}


def test_the_cuda_runtime_names_the_operations_that_it_lacks(
    tmp_path: Path, export: Export
) -> None:
    """Experts that stay in 16 bits, as `export_checkpoint` leaves them."""
    model = save_random_model(tmp_path / "model", "mixtral")
    for method in ("awq", "none"):
        recipe = load_recipe("cuda").overridden({"quantization.method": method})
        with pytest.raises(ModelError, match="export it with --runtime onnxruntime") as refused:
            export(model, recipe)
        assert "no operation yet for dense_experts" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("operation", ["layer_norm", "add_positions", "logits", "cached_attention"])
def test_what_is_not_in_the_table_is_lacking(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of what is supported is the table of operations, and nothing else."""
    assert cuda_lacks(tiny_decoder("opt")) == []
    monkeypatch.delitem(operations.OPERATIONS, operation)
    assert cuda_lacks(tiny_decoder("opt")) == [operation]


def test_a_text_beyond_the_first_context_needs_another_table(
    tmp_path: Path, export: Export
) -> None:
    """longrope: up to the context that the model was first trained with, one table is right."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    model = save_random_model(
        tmp_path / "model", "phi3", num_attention_heads=2, rope_parameters=rope,
        original_max_position_embeddings=32,
    )  # fmt: skip
    recipe = load_recipe("cuda")
    with pytest.raises(ModelError, match=r"longrope beyond \d+ positions"):
        export(model, recipe, context=96)
    export(model, recipe, context=32)
