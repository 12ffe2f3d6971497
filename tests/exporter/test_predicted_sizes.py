"""`awq_edge.fit` predicts the bytes of every part from config.json: those that lowerings write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from awq_edge.exporter.bundle import resolved_recipe
from awq_edge.exporter.lowerings import require_lowering
from awq_edge.exporter.spec import GraphSpec
from awq_edge.exporter.writer import WeightPlan
from awq_edge.fit.planner import Planner
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.program.formats import Formats, planned_formats, stored_formats
from awq_edge.recipe.recipes import Recipe, load_recipe

from .conftest import cuda_lacks
from .models import MAX_POSITIONS, save_quantized, save_random_model

CONTEXT = 64
NATIVE = {"export.linear": "native", "export.attention": "native"}
# name: the recipe and what is changed in it.
TARGETS: dict[str, tuple[str, dict[str, object]]] = {
    "onnxruntime": ("cpu", {}),
    "onnxruntime, float16": ("cpu", {"runtime.activation_dtype": "float16"}),
    "tensorrt-rtx": ("rtx-4090", {}),
    "tensorrt-rtx, native": ("rtx-4090", NATIVE),
    "tensorrt": ("jetson-orin-nano-8gb", {}),
    "tensorrt, native attention": ("jetson-orin-nano-8gb", {"export.attention": "native"}),
    "tensorrt 10.3": ("jetson-orin-nano-8gb-jetpack6", {"export.attention": "native"}),
    "cuda": ("cuda", {}),
}


Sizes = tuple[dict[str, int], int, int]
# Of the arenas of a cuda program: buffers of more layers are cut out of them in another order.
ARENA_TOLERANCE = 0.2


def lowered(path: Path, recipe: Recipe, lm_head_bits: int) -> Sizes:
    """Bytes by part, bytes a token and scales of what the lowering would write."""
    source = Checkpoint.open(path)
    recipe = resolved_recipe(recipe.asking(context=CONTEXT, lm_head_bits=lm_head_bits), source)
    spec = GraphSpec(CONTEXT, recipe.quantization.lm_head_bits)
    found = require_lowering(recipe.runtime.backend)(source, spec, recipe)
    plan = WeightPlan.of(found.weights)
    return plan.part_bytes(), plan.bytes_per_token(), found.scale_groups


def predicted(config: Path, recipe: Recipe, formats: Formats) -> Sizes:
    decoder = decoder_from_config(json.loads(config.read_text()))
    sizes = Planner(decoder, formats, recipe).sizes(CONTEXT)
    return sizes.part_bytes, sizes.bytes_per_token, sizes.scale_groups


def recipe_of(target: str, **overrides: object) -> Recipe:
    name, changes = TARGETS[target]
    return load_recipe(name).overridden(changes | overrides)


# TensorRT's newest and the type of activations are in the tests of formats.
@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"tensorrt", "onnxruntime, float16"}))
def test_every_architecture(
    target: str, model_type: str, tiny_model: Path, tiny_checkpoint: Path
) -> None:
    decoder = Checkpoint.open(tiny_model).decoder
    if target == "cuda" and cuda_lacks(decoder):
        pytest.skip(reason="runtime cuda lacks an operation of it")
    overrides = {"quantization.group_size": 32, "quantization.format": "awq"}
    recipe = recipe_of(target, **overrides)
    formats = planned_formats(decoder, recipe.quantization, 8)
    found = predicted(tiny_model / "config.json", recipe, formats)
    assert found == lowered(tiny_checkpoint, recipe, 8)
    # From the checkpoint's own config.json; and unquantized.
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    stored = stored_formats(decoder, config, 8, tiny_checkpoint)
    assert stored is not None
    assert predicted(tiny_checkpoint / "config.json", recipe, stored) == found
    if target == "cuda" and decoder.moe is not None:
        return  # its experts are quantized
    formats = planned_formats(decoder, None, 16)
    found = predicted(tiny_model / "config.json", recipe, formats)
    assert found == lowered(tiny_model, recipe, 16)


def test_arenas_of_a_program(tiny_checkpoint: Path, tiny_model: Path) -> None:
    """Activations of runtime cuda, from a layer of each kind."""
    decoder = Checkpoint.open(tiny_model).decoder
    recipe = recipe_of("cuda", **{"quantization.group_size": 32, "quantization.format": "awq"})
    formats = planned_formats(decoder, recipe.quantization, 8)
    found = Planner(decoder, formats, recipe).sizes(CONTEXT).arena_bytes
    source = Checkpoint.open(tiny_checkpoint)
    spec = GraphSpec(CONTEXT, 8)
    made = require_lowering("cuda")(source, spec, resolved_recipe(recipe, source)).arena_bytes
    assert found["wanted"] == made["wanted"]
    assert found["tokens"] == pytest.approx(made["tokens"], rel=ARENA_TOLERANCE)


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime, float16", "tensorrt", "cuda"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_every_format(target: str, bits: int, scheme: Any, llama: Path, tmp_path: Path) -> None:
    """With an output layer that the quantizer has stored, in other bits than the blocks."""
    head = NumberFormat(8 if bits != 8 else 4, 32, "symmetric" if bits != 8 else scheme)
    # The layout has one for the output layer of a model that is not tied.
    path = save_quantized(
        llama, tmp_path / "q", 32, scheme, bits=bits, layout="compressed-tensors",
        others={"lm_head": head},
    )  # fmt: skip
    overrides = {
        "quantization.bits": bits,
        "quantization.group_size": 32,
        "quantization.scheme": scheme,
        "quantization.format": "compressed-tensors",
        "quantization.lm_head_bits": head.bits,
    }
    recipe = recipe_of(target, **overrides)
    decoder = Checkpoint.open(llama).decoder
    formats = planned_formats(decoder, recipe.quantization, head.bits)
    found = predicted(llama / "config.json", recipe, formats)
    assert found == lowered(path, recipe, head.bits)
    stored = stored_formats(decoder, json.loads((path / "config.json").read_text()), 16, path)
    assert stored is not None and stored.lm_head_bits == head.bits
    assert predicted(path / "config.json", recipe, stored) == found


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt-rtx", "cuda"])
def test_sizes_that_do_not_fit_groups(target: str, tmp_path: Path) -> None:
    """A linear that no group fits stays as it is, and so does an output layer."""
    model = save_random_model(
        tmp_path / "m", "llama", hidden_size=80, intermediate_size=104, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64,
    )  # fmt: skip
    path = save_quantized(model, tmp_path / "q", 32)
    recipe = recipe_of(target, **{"quantization.group_size": 32})
    decoder = Checkpoint.open(model).decoder
    formats = planned_formats(decoder, recipe.quantization, 8)
    assert formats.lm_head_bits == 16 and CONTEXT <= MAX_POSITIONS
    found = predicted(model / "config.json", recipe, formats)
    assert found == lowered(path, recipe, 8)
