"""The canonical graph by itself, and what lowerings may do to it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from awq_edge.exporter.canonical import build_canonical_graph
from awq_edge.exporter.graph import DecoderGraph, module_path, to_model
from awq_edge.exporter.spec import GraphSpec
from awq_edge.exporter.weights import FLOAT16, FLOAT32, UINT4, UINT8
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import list_recipes, load_recipe
from awq_edge.recipe.runtimes import runtimes
from awq_edge.runtime.backends import open_session
from awq_edge.runtime.session import SessionOptions
from awq_edge.tensorrt.contract import DOMAIN

from .conftest import Export, lowering_of, parity_recipe
from .models import MAX_POSITIONS, VOCAB, Reference, random_ids, save_quantized, save_random_model
from .reference import CanonicalSession

# Absolute, of logits up to 10: float32 on both sides, added in different orders (1e-5 seen).
TOLERANCE = 2e-4
PARITY = GraphSpec(context=MAX_POSITIONS, activation_dtype="float32", lm_head_bits=16)


def canonical(path: Path, spec: GraphSpec = PARITY) -> DecoderGraph:
    return build_canonical_graph(Checkpoint.open(path), spec)


def ops(graph: DecoderGraph) -> Counter[str]:
    return Counter(node.op for node in graph.graph.nodes)


def test_only_two_operators_are_our_own(tiny_checkpoint: Path) -> None:
    graph = canonical(tiny_checkpoint)
    own = {node.op for node in graph.graph.nodes if node.domain == DOMAIN}
    assert own == {"W4A16Linear", "CachedAttention"}
    assert all(node.domain in (None, DOMAIN) for node in graph.graph.nodes)
    assert graph.graph.opset == 24
    counts, decoder = ops(graph), Checkpoint.open(tiny_checkpoint).decoder
    linears = [linear for layer in range(2) for linear in decoder.linears(layer)]
    assert (counts["W4A16Linear"], counts["CachedAttention"]) == (len(linears), 2)
    # lm_head and routers.
    assert counts["MatMul"] == 1 + sum(decoder.has_experts(layer) for layer in range(2))
    assert counts["GatherND"] == 1


def test_it_is_valid_onnx_with_every_shape_known(tiny_checkpoint: Path) -> None:
    graph = canonical(tiny_checkpoint)
    for node in graph.graph.nodes:
        for tensor in node.outputs:
            assert tensor.dtype is not None and tensor.shape is not None, tensor.name
    model = to_model(graph, ir_version=11)
    for proto in model.graph.initializer:  # their data lies elsewhere
        if proto.name in graph.weights:
            proto.ClearField("data_location")
            proto.raw_data = bytes(graph.weights[proto.name].nbytes)
    onnx.checker.check_model(model)


def test_inputs_and_outputs(llama_checkpoint: Path) -> None:
    graph = canonical(llama_checkpoint).graph
    cache = ("batch", 2, MAX_POSITIONS, 32)
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
    nodes = [node.name for node in canonical(llama_checkpoint).graph.nodes]
    assert len(set(nodes)) == len(nodes)
    for name in (
        "/model/embed_tokens/Gather",
        "/model/layers.0/self_attn/q_proj/W4A16Linear",
        "/model/layers.1/self_attn/CachedAttention",
        "/model/layers.1/mlp/down_proj/W4A16Linear",
        "/model/norm/RMSNormalization",
        "/lm_head/MatMul",
    ):
        assert name in nodes
    assert module_path("model.layers.12.mlp.up_proj") == "/model/layers.12/mlp/up_proj"


def test_w4a16linear_as_specified(tmp_path: Path) -> None:
    """docs/graph.md: attributes, dtypes and shapes of one node."""
    source = save_random_model(tmp_path / "model", "qwen2")
    spec = dataclasses.replace(PARITY, lm_head_bits=8)
    graph = canonical(save_quantized(source, tmp_path / "checkpoint"), spec)
    nodes = {node.name: node for node in graph.graph.nodes}
    node = nodes["/model/layers.0/self_attn/k_proj/W4A16Linear"]
    assert node.attrs == {
        "bits": 4,
        "group_size": 32,
        "in_features": 64,
        "out_features": 64,
        "layout_version": 0,
    }
    weights = [graph.weights[tensor.name] for tensor in node.inputs[1:]]
    assert [(w.dtype, w.shape) for w in weights] == [
        (UINT4, (64, 64)),
        (FLOAT16, (64, 2)),
        (UINT4, (64, 2)),
        (FLOAT32, (64,)),
    ]
    head = nodes["/lm_head/W4A16Linear"]  # symmetric: no zero points
    weights = [graph.weights[tensor.name] for tensor in head.inputs[1:]]
    assert [(w.dtype, w.shape) for w in weights] == [(UINT8, (VOCAB, 64)), (FLOAT16, (VOCAB, 2))]
    assert head.attrs["bits"] == 8


def test_a_window_that_the_context_cannot_exceed_is_left_out(tmp_path: Path) -> None:
    path = save_random_model(tmp_path / "model", "mistral", sliding_window=40)
    for context, expected in ((41, 40), (40, None)):
        graph = canonical(path, dataclasses.replace(PARITY, context=context)).graph
        windows = {n.attrs.get("window") for n in graph.nodes if n.op == "CachedAttention"}
        assert windows == {expected}


def test_weights_are_not_read_to_build_it(llama_checkpoint: Path, tmp_path: Path) -> None:
    """The graph needs names and shapes alone: a weight file of zeros gives the same one."""
    expected = to_model(canonical(llama_checkpoint), ir_version=11).SerializeToString()
    (tmp_path / "config.json").write_bytes((llama_checkpoint / "config.json").read_bytes())
    data = (llama_checkpoint / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    (tmp_path / "model.safetensors").write_bytes(data[:end] + bytes(len(data) - end))
    assert to_model(canonical(tmp_path), ir_version=11).SerializeToString() == expected


def test_it_computes_what_transformers_does(tiny_checkpoint: Path) -> None:
    """Prefill, chunk on a cache, decode, and two sequences of different length in one batch."""
    graph = canonical(tiny_checkpoint)
    reference = Reference(tiny_checkpoint)
    ids = random_ids(14)
    expected = reference.logits(ids)
    session = CanonicalSession(graph)
    for begin, end in ((0, 8), (8, 13), (13, 14)):
        chunk = np.array([ids[begin:end]])
        found = session.run(chunk, np.array([begin]), np.arange(end - begin)[None])
        np.testing.assert_allclose(found[0], expected[begin:end], atol=TOLERANCE)
    other = random_ids(14, seed=1)
    session = CanonicalSession(graph, batch=2)
    session.run(np.array([ids[:8], other[:8]]), np.array([0, 0]), np.array([[7], [7]]))
    # The second sequence goes back to its first five tokens.
    found = session.run(np.array([ids[8:11], other[5:8]]), np.array([8, 5]), np.array([[2], [0]]))
    both = np.stack([expected[10], reference.logits(other)[5]])
    np.testing.assert_allclose(found[:, 0], both, atol=TOLERANCE)


@pytest.mark.parametrize(("head_size", "rotary_size"), [(32, 16), (32, 8), (24, 6)])
def test_partial_rotary(
    head_size: int,
    rotary_size: int,
    tmp_path: Path,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rotary part of a head, inside and outside of GroupQueryAttention, against the reference."""
    path = save_random_model(tmp_path / "model", "llama", head_dim=head_size)
    opened = Checkpoint.open(path)
    rope = dataclasses.replace(opened.decoder.rope, rotary_size=rotary_size)
    decoder = dataclasses.replace(opened.decoder, rope=rope)
    partial = Checkpoint(opened.files, decoder, None)
    monkeypatch.setattr(Checkpoint, "open", lambda path: partial)
    ids = np.array([random_ids(12)])
    expected = CanonicalSession(build_canonical_graph(partial, PARITY)).run(
        ids, np.array([0]), np.arange(12)[None]
    )
    with open_session(export(path), SessionOptions(threads=1)) as session:  # type: ignore[attr-defined]
        found = session.logits(ids[0].tolist(), range(12))
    np.testing.assert_allclose(found, expected[0], atol=TOLERANCE)


def graph_lowerings() -> list[str]:
    """The runtimes that execute a graph."""
    return [name for name in runtimes() if hasattr(lowering_of(name), "lower")]


@pytest.mark.parametrize("runtime", graph_lowerings())
def test_a_lowering_leaves_the_canonical_graph_as_it_was(
    runtime: str, tiny_checkpoint: Path
) -> None:
    graph = canonical(tiny_checkpoint)
    before = to_model(graph, ir_version=11).SerializeToString()
    weights = dict(graph.weights)
    lowering = lowering_of(runtime)
    own = [recipe for recipe in list_recipes() if recipe.runtime.backend == runtime]
    recipe = next(iter(own), None) or load_recipe(runtime=runtime).overridden(
        {"runtime.backend": runtime}
    )
    first = to_model(lowering.lower(graph, recipe), lowering.IR_VERSION).SerializeToString()
    assert to_model(graph, ir_version=11).SerializeToString() == before
    assert graph.weights == weights
    again = to_model(lowering.lower(graph, recipe), lowering.IR_VERSION).SerializeToString()
    assert again == first != before


def test_onnxruntime_lowering_merges_and_fuses(llama_checkpoint: Path) -> None:
    lowering = lowering_of("onnxruntime")
    lowered = lowering.lower(canonical(llama_checkpoint), parity_recipe())
    assert (lowered.graph.opset, lowering.IR_VERSION) == (21, 10)
    assert all(node.domain in (None, "com.microsoft") for node in lowered.graph.nodes)
    counts = ops(lowered)
    # qkv, o, gate+up, down: four a block. Its residual sums are part of the norms.
    assert (counts["MatMulNBits"], counts["GroupQueryAttention"]) == (8, 2)
    assert (counts["SimplifiedLayerNormalization"], counts["Add"]) == (2, 2)
    assert counts["SkipSimplifiedLayerNormalization"] == 3
    names = {node.name: node for node in lowered.graph.nodes}
    merged = names["/model/layers.0/self_attn/q_proj+k_proj+v_proj/MatMulNBits"]
    assert merged.attrs["N"] == (4 + 2 + 2) * 32
    attention = names["/model/layers.0/self_attn/GroupQueryAttention"]
    assert attention.inputs[0] is merged.outputs[0]  # packed: nothing is split
    assert attention.attrs["do_rotary"] == 1
    assert [tensor.is_empty() for tensor in attention.inputs[1:3]] == [True, True]


def test_a_head_size_that_onnxruntime_cannot_rotate(tmp_path: Path) -> None:
    path = save_random_model(tmp_path / "model", "llama", head_dim=24)
    lowering = lowering_of("onnxruntime")
    lowered = lowering.lower(canonical(path), parity_recipe())
    assert ops(lowered)["RotaryEmbedding"] == 4
    attention = [n for n in lowered.graph.nodes if n.op == "GroupQueryAttention"]
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
