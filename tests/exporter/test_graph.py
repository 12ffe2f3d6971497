"""The graphs that emitters make: names, shapes, what is merged and fused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from awq_edge.exporter.emit_onnxruntime import IR_VERSION
from awq_edge.exporter.graph import DecoderGraph, module_path, to_model
from awq_edge.exporter.spec import GraphSpec
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.program.weights import Dtype
from awq_edge.recipe.recipes import Recipe, list_recipes
from awq_edge.recipe.runtimes import runtimes
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import SessionOptions

from .conftest import Export, lowering_of, parity_recipe
from .models import MAX_POSITIONS, VOCAB, Reference, random_ids, save_quantized, save_random_model
from .test_parity import TOLERANCE, relative_error

SPEC = GraphSpec(context=MAX_POSITIONS, lm_head_bits=16)


def emitted(path: Path, spec: GraphSpec = SPEC, recipe: Recipe | None = None) -> DecoderGraph:
    """The graph for onnxruntime."""
    emitter = lowering_of("onnxruntime").emitter_of(
        Checkpoint.open(path), spec, recipe or parity_recipe()
    )
    graph: DecoderGraph = emitter.emit()
    return graph


def ops(graph: DecoderGraph) -> Counter[str]:
    return Counter(node.op for node in graph.graph.nodes)


def by_name(graph: DecoderGraph) -> dict[str, gs.Node]:
    return {node.name: node for node in graph.graph.nodes}


def graph_runtimes() -> list[str]:
    """The runtimes that execute a graph."""
    return [name for name in runtimes() if hasattr(lowering_of(name), "emitter_of")]


@pytest.mark.parametrize("runtime", graph_runtimes())
def test_every_shape_is_known_and_every_name_is_one(runtime: str, tiny_checkpoint: Path) -> None:
    own = [recipe for recipe in list_recipes() if recipe.runtime.backend == runtime]
    native = {"export.attention": "native", "export.context": MAX_POSITIONS}
    recipe = own[0].overridden(native)  # any head size
    emitter = lowering_of(runtime).emitter_of(Checkpoint.open(tiny_checkpoint), SPEC, recipe)
    graph = emitter.emit()
    names = [node.name for node in graph.graph.nodes]
    assert len(set(names)) == len(names)
    for node in graph.graph.nodes:
        for tensor in node.outputs:
            known = tensor.dtype is not None and tensor.shape is not None
            assert known or tensor.is_empty(), tensor.name


def test_inputs_and_outputs(llama_checkpoint: Path) -> None:
    graph = emitted(llama_checkpoint).graph
    cache = ("batch", 2, "context", 32)
    found = {t.name: tuple(t.shape) for t in [*graph.inputs, *graph.outputs]}
    assert found == {
        "input_ids": ("batch", "sequence"),
        "past_length": ("batch",),
        "logits_positions": ("batch", "positions"),
        "logits": ("batch", "positions", VOCAB),
        **{
            f"{when}.{layer}.{part}": cache
            for when in ("past", "present")
            for layer in range(2)
            for part in ("key", "value")
        },
    }


def test_nodes_are_named_after_modules(llama_checkpoint: Path) -> None:
    nodes = by_name(emitted(llama_checkpoint))
    for name in (
        "/model/embed_tokens/Gather",
        "/model/layers.0/self_attn/q_proj+k_proj+v_proj/MatMulNBits",
        "/model/layers.1/self_attn/GroupQueryAttention",
        "/model/layers.1/mlp/down_proj/MatMulNBits",
        "/model/norm/SimplifiedLayerNormalization",
        "/lm_head/MatMul",
    ):
        assert name in nodes
    assert module_path("model.layers.12.mlp.up_proj") == "/model/layers.12/mlp/up_proj"


def test_weights_of_a_node_as_specified(tmp_path: Path) -> None:
    """docs/graph.md: attributes, dtypes and shapes."""
    source = save_random_model(tmp_path / "model", "qwen2")
    spec = dataclasses.replace(SPEC, lm_head_bits=8)
    graph = emitted(save_quantized(source, tmp_path / "checkpoint"), spec)
    nodes = by_name(graph)

    def weights(node: gs.Node) -> list[tuple[Dtype, tuple[int, ...]]]:
        given = [graph.weights.get(tensor.name) for tensor in node.inputs[1:]]
        return [(weight.dtype, weight.shape) for weight in given if weight is not None]

    node = nodes["/model/layers.0/self_attn/o_proj/MatMulNBits"]
    assert node.attrs == {"K": 128, "N": 64, "bits": 4, "block_size": 32, "accuracy_level": 0}
    assert weights(node) == [
        ("uint8", (64, 4, 16)),
        ("float32", (64, 4)),
        ("uint8", (64, 2)),
    ]
    head = nodes["/lm_head/MatMulNBits"]  # symmetric: no zero points
    assert weights(head) == [("uint8", (VOCAB, 2, 32)), ("float32", (VOCAB, 2))]
    assert head.attrs["bits"] == 8


def test_a_window_that_the_context_cannot_exceed_is_left_out(tmp_path: Path) -> None:
    path = save_random_model(tmp_path / "model", "mistral", sliding_window=40)
    for context, expected in ((41, 40), (40, None)):
        graph = emitted(path, dataclasses.replace(SPEC, context=context)).graph
        nodes = [node for node in graph.nodes if node.op == "GroupQueryAttention"]
        assert {node.attrs.get("local_window_size") for node in nodes} == {expected}


def test_weights_are_not_read_to_build_it(llama_checkpoint: Path, tmp_path: Path) -> None:
    """The graph needs names and shapes alone: a weight file of zeros gives the same one."""
    expected = to_model(emitted(llama_checkpoint), IR_VERSION).SerializeToString()
    (tmp_path / "config.json").write_bytes((llama_checkpoint / "config.json").read_bytes())
    data = (llama_checkpoint / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    (tmp_path / "model.safetensors").write_bytes(data[:end] + bytes(len(data) - end))
    assert to_model(emitted(tmp_path), IR_VERSION).SerializeToString() == expected


def test_granite_s_multipliers_take_one_node(tmp_path: Path) -> None:
    """That of the embedding: the others are in norms and attention."""
    graph = emitted(save_random_model(tmp_path / "model", "granite"))
    multiplied = [name for name in by_name(graph) if name.endswith("scale/Mul")]
    assert multiplied == ["/model/embed_tokens/scale/Mul"]


@pytest.mark.parametrize(("head_size", "rotary_size"), [(32, 16), (32, 8), (24, 6)])
def test_partial_rotary(
    head_size: int,
    rotary_size: int,
    tmp_path: Path,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rotary part of a head, inside and outside of GroupQueryAttention, against transformers."""
    factor = rotary_size / head_size
    path = save_random_model(
        tmp_path / "model",
        "phi3",
        head_dim=head_size,
        num_attention_heads=4,
        hidden_size=4 * head_size,
        partial_rotary_factor=factor,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": factor,
        },
    )
    assert Checkpoint.open(path).decoder.rope.rotary_size == rotary_size
    ids = random_ids(12)
    expected = Reference(path).logits(ids)
    with open_session(export(path), SessionOptions(threads=1)) as session:  # type: ignore[attr-defined]
        found = session.logits(ids, range(12))
    assert relative_error(np.asarray(found), expected) < TOLERANCE


def test_linears_are_merged_and_norms_fused(llama_checkpoint: Path) -> None:
    graph = emitted(llama_checkpoint)
    assert (graph.graph.opset, IR_VERSION) == (21, 10)
    assert all(node.domain in (None, "com.microsoft") for node in graph.graph.nodes)
    counts = ops(graph)
    # qkv, o, gate+up, down: four a block. Its residual sums are part of the norms.
    assert (counts["MatMulNBits"], counts["GroupQueryAttention"]) == (8, 2)
    assert (counts["SimplifiedLayerNormalization"], counts["Add"]) == (2, 2)
    assert counts["SkipSimplifiedLayerNormalization"] == 3
    names = by_name(graph)
    merged = names["/model/layers.0/self_attn/q_proj+k_proj+v_proj/MatMulNBits"]
    assert merged.attrs["N"] == (4 + 2 + 2) * 32
    attention = names["/model/layers.0/self_attn/GroupQueryAttention"]
    assert attention.inputs[0] is merged.outputs[0]  # packed: nothing is split
    assert attention.attrs["do_rotary"] == 1
    assert [tensor.is_empty() for tensor in attention.inputs[1:3]] == [True, True]


def test_a_head_size_that_onnxruntime_cannot_rotate(tmp_path: Path) -> None:
    path = save_random_model(tmp_path / "model", "llama", head_dim=24)
    graph = emitted(path)
    assert ops(graph)["RotaryEmbedding"] == 4
    attention = [n for n in graph.graph.nodes if n.op == "GroupQueryAttention"]
    assert {node.attrs["do_rotary"] for node in attention} == {0}
    assert isinstance(attention[0].inputs[0], gs.Variable)


def test_the_oldest_version_of_a_bundle(tmp_path: Path, llama: Path, export: Export) -> None:
    """Sliding windows are off by one before onnxruntime 1.24."""
    from awq_edge.errors import RuntimeUnavailableError
    from awq_edge.runtime.backends.onnxruntime import _require_version

    plain = export(llama)
    assert plain.manifest.min_runtime_version == "1.23"
    _require_version(plain, "1.23.2")
    with pytest.raises(RuntimeUnavailableError, match=r"onnxruntime 1\.22\.1 .*needs 1\.23"):
        _require_version(plain, "1.22.1")
    window = save_random_model(tmp_path / "model", "mistral", sliding_window=7)
    assert export(window).manifest.min_runtime_version == "1.24"
