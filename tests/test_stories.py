"""A public model whose sizes fit neither group nor layout: quantized, it still tells its story."""

from __future__ import annotations

from pathlib import Path

import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.evaluate.report import evaluate_perplexity
from awq_edge.recipe.recipes import load_recipe

# What the model's README says it writes after BOS and "Once upon a time".
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
# The model knows this text nearly by heart: 1.6 was measured with 4-bit attention layers, a wrong
# layout gives hundreds (its vocabulary is 512).
KNOWN_TEXT_PERPLEXITY = 3.0


@pytest.fixture(scope="module")
def bundle(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("stories") / "bundle"
    return awq_edge.export(stories, out, load_recipe(method="awq", group_size=32, accuracy_level=0))


def test_layers_that_do_not_fit_are_named(bundle: Bundle, stories: Path, tmp_path: Path) -> None:
    """An export goes through compressed-tensors, where only the groups have to fit."""
    groups = "in_features 172 is not a multiple of group_size 32"
    unquantized = bundle.manifest.unquantized
    assert set(unquantized) == {f"model.layers.{i}.mlp.down_proj" for i in range(5)}
    assert set(unquantized.values()) == {groups}
    checkpoint = awq_edge.quantize(
        stories, tmp_path / "awq", load_recipe(method="rtn", group_size=32, format="awq")
    )
    unquantized = checkpoint.report.unquantized
    assert len(unquantized) == 15  # gate, up and down of five blocks
    assert unquantized["model.layers.4.mlp.down_proj"] == groups
    assert unquantized["model.layers.0.mlp.gate_proj"] == "out_features 172 is not a multiple of 8"


def test_it_still_tells_its_story(bundle: Bundle, tmp_path: Path) -> None:
    text = tmp_path / "story.txt"
    text.write_text(STORY)
    assert evaluate_perplexity(bundle.path, text).perplexity < KNOWN_TEXT_PERPLEXITY
    with awq_edge.load(bundle.path) as model:
        told = model.generate("Once upon a time", max_new_tokens=150).text
    assert "Lily" in told
    words = told.split()
    assert len(set(words)) > 30  # a story, not a loop
