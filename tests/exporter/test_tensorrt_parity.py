"""Every lowering for TensorRT gives transformers' logits, as the onnxruntime lowering does.

In float32, whatever the plugin takes: what is tested is the graph and its weights.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_edge.exporter.spec import GraphSpec
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.recipe.recipes import Recipe, load_recipe

from .conftest import lowering_of
from .lowered_session import LoweredSession
from .models import MAX_POSITIONS, Reference, random_ids, save_quantized, save_random_model
from .test_embeddings import WithImage, chunk, prompt
from .test_parity import VARIANTS, relative_error

# Of the largest logit. Both sides compute in float32 and add in different orders: 2e-6 was the
# largest seen. A wrong position, window or zero point is above 1e-2.
TOLERANCE = 1e-5
# 16-bit activations and rotary tables: 2**-11 a rounding, a dozen roundings a layer.
HALF_TOLERANCE = 1e-2
BFLOAT16_TOLERANCE = 8e-2  # 2**-8 a rounding
CT = "compressed-tensors"
RTX, JETPACK_6 = "rtx-4070-laptop-8gb", "jetson-orin-nano-8gb-jetpack6"
FORMS = {
    "plugin": (RTX, "plugin", "plugin"),
    "native attention": (RTX, "plugin", "native"),
    "native linears": (RTX, "native", "plugin"),
    "native": (RTX, "native", "native"),
    "decomposed": (JETPACK_6, "plugin", "plugin"),
    "decomposed attention": (JETPACK_6, "plugin", "native"),
}
ASYMMETRIC = [name for name, (_, linear, _) in FORMS.items() if linear == "plugin"]


def form_recipe(form: str, dtype: str = "float32") -> Recipe:
    name, linear, attention = FORMS[form]
    return load_recipe(name).overridden(
        {
            "export.linear": linear,
            "export.attention": attention,
            "export.context": MAX_POSITIONS,
            "runtime.activation_dtype": dtype,
        }
    )


def session(
    path: Path, form: str, batch: int = 1, dtype: str = "float32", takes_embeddings: bool = False
) -> LoweredSession:
    recipe = form_recipe(form, dtype)
    spec = GraphSpec(MAX_POSITIONS, 16, takes_embeddings)
    lowering = lowering_of(recipe.runtime.backend)
    graph = lowering.emitter_of(Checkpoint.open(path), spec, recipe).emit()
    ir_version = 11 if graph.graph.opset > 17 else 8
    return LoweredSession(graph, ir_version, recipe.export.attention, batch)


def check(path: Path, form: str, limit: float = TOLERANCE, **more: Any) -> None:
    """A prefill, a chunk on a cache, a token; then two sequences of other lengths in one batch."""
    reference = Reference(path)
    ids, other = random_ids(14), random_ids(14, seed=1)
    expected = reference.logits(ids)
    scale = float(np.abs(expected).max())

    def compare(found: np.ndarray, wanted: np.ndarray) -> None:
        assert float(np.abs(found - wanted).max()) / scale < limit

    one = session(path, form, **more)
    for begin, end in ((0, 8), (8, 13), (13, 14)):
        positions = np.arange(end - begin)[None]
        found = one.run(np.array([ids[begin:end]]), np.array([begin]), positions)
        compare(found[0], expected[begin:end])
    two = session(path, form, batch=2, **more)
    two.run(np.array([ids[:8], other[:8]]), np.array([0, 0]), np.array([[7], [7]]))
    # The second sequence goes back to its first five tokens.
    found = two.run(np.array([ids[8:11], other[5:8]]), np.array([8, 5]), np.array([[2], [0]]))
    compare(found[:, 0], np.stack([expected[10], reference.logits(other)[5]]))


@pytest.fixture(scope="module")
def asymmetric_checkpoint(plugin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_quantized(plugin_model, tmp_path_factory.mktemp("asymmetric"))


@pytest.fixture(scope="module")
def symmetric_checkpoint(plugin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_quantized(plugin_model, tmp_path_factory.mktemp("symmetric"), scheme="symmetric")


@pytest.mark.parametrize("form", FORMS)
def test_every_architecture_symmetric(form: str, symmetric_checkpoint: Path) -> None:
    check(symmetric_checkpoint, form)


@pytest.mark.parametrize("form", ASYMMETRIC)
def test_every_architecture_asymmetric(form: str, asymmetric_checkpoint: Path) -> None:
    check(asymmetric_checkpoint, form)


@pytest.mark.parametrize("form", ["plugin", "native", "decomposed attention"])
def test_every_architecture_in_float16(form: str, symmetric_checkpoint: Path) -> None:
    check(symmetric_checkpoint, form, HALF_TOLERANCE, dtype="float16")


@pytest.mark.parametrize("form", ["plugin", "decomposed"])
def test_every_architecture_in_bfloat16(form: str, asymmetric_checkpoint: Path) -> None:
    check(asymmetric_checkpoint, form, BFLOAT16_TOLERANCE, dtype="bfloat16")


@pytest.mark.parametrize("form", ["native", "decomposed attention"])
def test_every_architecture_unquantized(form: str, tiny_model: Path) -> None:
    """In onnxruntime."""
    check(tiny_model, form)


def variants() -> list[str]:
    """Those of the graph's variants whose heads the plugin has."""
    return [name for name, (_, config) in VARIANTS.items() if config.get("head_dim", 32) % 32 == 0]


@pytest.mark.parametrize("name", variants())
@pytest.mark.parametrize("form", ["plugin", "native", "decomposed attention"])
def test_variants(name: str, form: str, tmp_path: Path) -> None:
    model_type, config = VARIANTS[name]
    source = save_random_model(tmp_path / "model", model_type, **config)
    check(save_quantized(source, tmp_path / "checkpoint", scheme="symmetric"), form)


@pytest.mark.parametrize("form", ["native", "decomposed attention"])
@pytest.mark.parametrize("name", ["head size 8", "head size 24, norms", "window, head size 8"])
def test_heads_that_the_plugin_does_not_have(name: str, form: str, tmp_path: Path) -> None:
    model_type, config = VARIANTS[name]
    check(save_random_model(tmp_path / "model", model_type, **config), form)


@pytest.mark.parametrize("form", ["plugin", "native"])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_other_bits(bits: int, form: str, tmp_path: Path) -> None:
    source = save_random_model(tmp_path / "model", "llama", intermediate_size=192)
    path = save_quantized(source, tmp_path / "out", 64, "symmetric", bits=bits, layout=CT)
    check(path, form)


@pytest.mark.parametrize("form", ["plugin", "native"])
def test_linears_that_differ(form: str, tmp_path: Path) -> None:
    """q and v merged, k apart; gate and up apart: SiLU without the epilogue."""
    others = {
        "model.layers.1.self_attn.k_proj": NumberFormat(8, 32, "symmetric"),
        "model.layers.1.mlp.up_proj": NumberFormat(4, 64, "symmetric"),
    }
    sizes = {"attention_bias": True, "mlp_bias": True, "intermediate_size": 192}
    source = save_random_model(tmp_path / "model", "llama", **sizes)
    path = save_quantized(source, tmp_path / "out", scheme="symmetric", layout=CT, others=others)
    check(path, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl"])
def test_an_image_among_the_tokens(model_type: str, form: str, tmp_path: Path) -> None:
    """Embeddings for token ids, and positions with three axes: q and k are rotated by token."""
    source = save_random_model(tmp_path / "model", model_type)
    path = save_quantized(source, tmp_path / "checkpoint", scheme="symmetric")
    ids = prompt(model_type)
    expected, inputs = WithImage(path).run(model_type, ids)
    lowered = session(path, form, takes_embeddings=True)
    cuts = [0, 7, len(ids) - 1, len(ids)]
    found = [lowered.call(chunk(inputs, begin, end))[0] for begin, end in pairwise(cuts)]
    assert relative_error(np.concatenate(found), expected) < TOLERANCE
