"""What architectures differ in from Llama, one by one, against transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_edge.errors import ConfigError, ModelError
from awq_edge.exporter.bundle import check_export
from awq_edge.exporter.emit_onnxruntime import IR_VERSION
from awq_edge.exporter.lowered import lowered_graph
from awq_edge.exporter.writer import WeightPlan
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import load_recipe
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import SessionOptions

from .conftest import Export, parity_recipe
from .models import MAX_POSITIONS, Reference, random_ids, save_quantized, save_random_model
from .test_graph import emitted, ops
from .test_parity import TOLERANCE, check_bundle, relative_error

_FACTORS = {
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.2, 2.3, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 3.0, 4.0, 6.0, 8.0, 9.0],
}


def longrope(original: int) -> dict[str, Any]:
    """Factors of half of 32 channels, for a model first trained with so many positions."""
    return {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": original,
            **_FACTORS,
        },
        "original_max_position_embeddings": original,
        # transformers counts factors by this quotient, whatever head_dim is.
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope, beyond its first context": ("phi3", longrope(24)),
    "longrope, within its first context": ("phi3", longrope(MAX_POSITIONS)),
    "fused, rotated apart": (
        "phi3",
        {"num_attention_heads": 8, "num_key_value_heads": 2, "partial_rotary_factor": 1.0},
    ),
    "fused, window": ("phi3", {"sliding_window": 7}),
    "no soft caps": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "soft cap, window, head size 24": ("gemma2", {"head_dim": 24, "sliding_window": 5}),
    "biases, untied": ("gemma2", {"attention_bias": True, "tie_word_embeddings": False}),
    "a window in every layer": (
        "gemma3_text",
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": 9},
    ),
    "soft cap of logits": ("gemma3_text", {"final_logit_softcapping": 2.0}),
    "shares that sum to 1": ("qwen3_moe", {"norm_topk_prob": True, "decoder_sparse_step": 1}),
    "one expert a token": ("mixtral", {"num_experts_per_tok": 1, "num_local_experts": 9}),
    "all experts": ("mixtral", {"num_experts_per_tok": 4}),
    "experts, window": ("mixtral", {"sliding_window": 7}),
    "norms after the sums, projected embeddings": (
        "opt",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    ),
    "gelu, no biases, projected embeddings": (
        "opt",
        {"activation_function": "gelu", "enable_bias": False, "word_embed_proj_dim": 32},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int4"])
def test_variants(name: str, quantized: bool, tmp_path: Path, export: Export) -> None:
    model_type, config = VARIANTS[name]
    source = save_random_model(tmp_path / "model", model_type, **config)
    if quantized:
        source = save_quantized(source, tmp_path / "checkpoint")
    check_bundle(export(source), source)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": 4.0}),
        ("gemma2", {"final_logit_softcapping": 4.0}),
        ("gemma3_text", {"rope_parameters": None, "rope_local_base_freq": 100.0}),
        ("qwen3_moe", {"norm_topk_prob": True}),
    ],
)
def test_the_parity_check_sees_it(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """What the graph could leave out changes the logits by far more than the tolerance."""
    logits = []
    for name, config in (("plain", {}), ("changed", changes)):
        path = save_random_model(tmp_path / name, model_type, **config)
        logits.append(Reference(path).logits(random_ids(MAX_POSITIONS)))
    assert relative_error(*logits) > 100 * TOLERANCE


def test_longrope_is_chosen_by_the_context(tmp_path: Path) -> None:
    """Long factors where the exported context exceeds the first one, for every position."""
    logits = []
    for original in (24, MAX_POSITIONS):
        path = save_random_model(tmp_path / str(original), "phi3", **longrope(original))
        logits.append(Reference(path).logits(random_ids(MAX_POSITIONS)))
        rope = Checkpoint.open(path).decoder.rope
        graph = emitted(path)
        # The last pair of channels turns slowest: cosine of the first position tells its factor.
        factors = rope.long_factor if original == 24 else rope.short_factor
        last = 10000.0 ** (-14 / 16) / factors[-1]
        scale = graph.weights["rope.cosine"].array()[0, 0]
        assert graph.weights["rope.sine"].array()[1, -1] == pytest.approx(scale * np.sin(last))
    assert relative_error(*logits) > 100 * TOLERANCE


def test_offsets_are_part_of_the_weights(tmp_path: Path) -> None:
    """Gemma's norms multiply by 1 + w: one standard RMSNormalization, the sum in its weight."""
    path = save_random_model(tmp_path / "model", "gemma2")
    graph = emitted(path)
    name = "model.layers.0.input_layernorm.weight"
    stored = Checkpoint.open(path).dense(name)
    np.testing.assert_array_equal(graph.weights[name].array(), 1 + stored)
    assert ops(graph)["SimplifiedLayerNormalization"] == 2 * 2 + 1 + 1
    assert ops(graph)["SkipSimplifiedLayerNormalization"] == 3


def test_tables_are_shared_by_layers_of_one_rotation(tmp_path: Path) -> None:
    graph = emitted(save_random_model(tmp_path / "model", "gemma3_text", num_hidden_layers=4))
    attention = [node for node in graph.graph.nodes if node.op == "GroupQueryAttention"]
    assert [node.inputs[7].name for node in attention] == ["rope.local.cosine", "rope.cosine"] * 2
    assert [node.attrs.get("local_window_size") for node in attention] == [16, None] * 2


def test_learned_positions_leave_out_the_tables(tmp_path: Path) -> None:
    graph = emitted(save_random_model(tmp_path / "model", "opt"))
    attention = [node for node in graph.graph.nodes if node.op == "GroupQueryAttention"]
    assert {node.attrs["do_rotary"] for node in attention} == {0}
    assert {len(node.inputs) for node in attention} == {7}
    assert not [name for name in graph.weights if name.startswith("rope")]


def test_a_fused_linear_goes_into_the_attention_packed(tmp_path: Path) -> None:
    source = save_random_model(tmp_path / "model", "phi3")
    checkpoint = save_quantized(source, tmp_path / "checkpoint")
    lowered = emitted(checkpoint)
    # gate and up are split, q, k and v are not.
    assert (ops(lowered)["Split"], ops(lowered)["MatMulNBits"]) == (2, 8)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_token_reads_the_experts_that_it_is_sent_to(quantized: bool, tmp_path: Path) -> None:
    """Three of four experts: three quarters of their bytes, quantized or not."""
    source = save_random_model(tmp_path / "model", "mixtral")
    if quantized:
        source = save_quantized(source, tmp_path / "checkpoint")
    lowered = emitted(source)
    plan = WeightPlan.of(lowered_graph(lowered, IR_VERSION).weights)
    experts = sum(weight.nbytes for weight in plan.weights if ".experts." in weight.name)
    rows = {"embedding": plan.weights[0].shape[0], "tables": MAX_POSITIONS}
    every = sum(weight.nbytes // rows.get(weight.part, 1) for weight in plan.weights)
    assert experts > every // 2
    assert plan.bytes_per_token() == every - experts // 4


def test_the_manifest_says_what_experts_take(tmp_path: Path, export: Export) -> None:
    """Layers with experts and layers without: the widest FFN of both."""
    found = []
    for step in (1, 2):
        path = save_random_model(tmp_path / str(step), "qwen3_moe", decoder_sparse_step=step)
        manifest = export(path).manifest
        found.append((manifest.intermediate_size, manifest.experts_per_token))
    assert found == [(64, 2), (160, 2)]


def test_a_model_that_overflows_float16_is_refused(tmp_path: Path, export: Export) -> None:
    """Gemma 3's activations exceed float16 (with real weights)."""
    model = save_random_model(tmp_path / "model", "gemma3_text")
    with pytest.raises(ConfigError, match="exceed what float16 can hold; give --activation-dtype"):
        export(model, parity_recipe(**{"runtime.activation_dtype": "float16"}))


def test_the_advice_for_float16_is_one_that_is_taken(tmp_path: Path) -> None:
    """For every recipe and every type that is refused: what is advised is not refused in turn."""
    model = save_random_model(tmp_path / "model", "gemma3_text")
    advised = re.compile(r"give --activation-dtype (\w+)(?: or (\w+))?$")
    for name in (
        "cpu",
        "jetson-orin-nano-8gb",
        "jetson-orin-nano-8gb-jetpack6",
        "rtx-4060-laptop-8gb",
    ):
        for dtype in ("float16", "bfloat16", "float32"):
            recipe = load_recipe(name).overridden({"runtime.activation_dtype": dtype})
            try:
                check_export(Checkpoint.open(model), recipe)
            except ConfigError as error:
                found = advised.search(str(error))
                assert found is not None, str(error)
                for other in filter(None, found.groups()):
                    assert other not in (dtype, "float16")
                    try:
                        check_export(
                            Checkpoint.open(model),
                            recipe.overridden({"runtime.activation_dtype": other}),
                        )
                    except ConfigError as second:
                        raise AssertionError(f"{error}, then: {second}") from None
                    except ModelError:
                        pass  # sizes of the random model, which are no question of its activations
            except ModelError:
                pass


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_norms_with_an_offset_in_float16(model_type: str, tmp_path: Path) -> None:
    """The graph itself has either type: 1 + w is added before it is rounded."""
    path = save_random_model(tmp_path / "model", model_type)
    recipe = parity_recipe(**{"runtime.activation_dtype": "float16"})
    graph = emitted(path, recipe=recipe)
    name = "model.norm.weight"
    stored = Checkpoint.open(path).dense(name).astype(np.float32)
    np.testing.assert_array_equal(graph.weights[name].array(), (1 + stored).astype(np.float16))


def test_a_session_with_experts_of_one_token_at_a_time(tmp_path: Path, export: Export) -> None:
    """Decoding leaves most experts without a token: pieces of no rows."""
    path = save_random_model(tmp_path / "model", "qwen3_moe", num_experts=32, decoder_sparse_step=1)
    ids = random_ids(12)
    expected = Reference(path).logits(ids)
    with open_session(export(path), SessionOptions(threads=1)) as session:  # type: ignore[attr-defined]
        found = [session.prefill([token]).copy() for token in ids]
    assert relative_error(np.stack(found), expected) < TOLERANCE
