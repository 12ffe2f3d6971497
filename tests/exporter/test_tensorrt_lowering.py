"""Graphs for TensorRT: which nodes they have, what the bundle says of them, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ConfigError, ModelError
from awq_edge.exporter.graph import DecoderGraph
from awq_edge.exporter.spec import GraphSpec
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import load_recipe
from awq_edge.tensorrt.contract import OPS
from tests.tiny_models import save_tokenizer

from .conftest import Export, lowering_of
from .exports import peak_of_export
from .models import MAX_POSITIONS, save_quantized, save_random_model
from .test_graph import ops
from .test_tensorrt_parity import FORMS, JETPACK_6, RTX, form_recipe

CT = "compressed-tensors"


def lowered(path: Path, form: str, lm_head_bits: int = 16) -> DecoderGraph:
    recipe = form_recipe(form, "float16")
    lowering = lowering_of(recipe.runtime.backend)
    spec = GraphSpec(MAX_POSITIONS, lm_head_bits)
    graph: DecoderGraph = lowering.emitter_of(Checkpoint.open(path), spec, recipe).emit()
    return graph


def by_name(graph: DecoderGraph) -> dict[str, gs.Node]:
    return {node.name: node for node in graph.graph.nodes}


@pytest.fixture(scope="session")
def symmetric(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_quantized(llama, tmp_path_factory.mktemp("symmetric"), scheme="symmetric")


def test_plugin_merges_and_fuses(llama_checkpoint: Path) -> None:
    graph = lowered(llama_checkpoint, "plugin", lm_head_bits=8)
    counts, nodes = ops(graph), by_name(graph)
    # Of a block: qkv, o, gate+up, down.
    assert (counts["W4A16Linear"], counts["CachedAttention"]) == (2 * 4 + 1, 2)
    assert not {"Split", "Sigmoid", "Mul"} & set(counts)
    qkv = nodes["/model/layers.0/self_attn/q_proj+k_proj+v_proj/W4A16Linear"]
    attention = nodes["/model/layers.0/self_attn/CachedAttention"]
    assert attention.inputs[0] is qkv.outputs[0]
    assert (attention.attrs["merged_qkv"], attention.attrs["qk_norm"]) == (1, 0)
    gate_up = nodes["/model/layers.1/mlp/gate_proj+up_proj/W4A16Linear"]
    assert (gate_up.attrs["epilogue"], gate_up.attrs["out_features"]) == (1, 2 * 160)
    down = nodes["/model/layers.1/mlp/down_proj/W4A16Linear"]
    assert down.inputs[0] is gate_up.outputs[0] and down.inputs[0].shape[-1] == 160
    head = nodes["/lm_head/W4A16Linear"]
    assert (head.attrs["bits"], head.attrs["has_zeros"]) == (8, 0)


def test_norms_of_heads_go_into_the_plugin(tmp_path: Path) -> None:
    source = save_random_model(tmp_path / "model", "qwen3")
    graph = lowered(save_quantized(source, tmp_path / "out"), "plugin")
    assert not {"Reshape", "Split"} & set(ops(graph))
    attention = by_name(graph)["/model/layers.1/self_attn/CachedAttention"]
    assert (attention.attrs["qk_norm"], attention.attrs["merged_qkv"]) == (1, 1)
    norms = [tensor.name for tensor in attention.inputs[-2:]]
    assert norms == [f"model.layers.1.self_attn.{part}_norm.weight" for part in "qk"]


@pytest.mark.parametrize("form", FORMS)
def test_nodes_of_the_plugin_fit_its_contract(form: str, tmp_path: Path) -> None:
    """Shapes and types of the inputs, every attribute written."""
    sizes = {"attention_bias": True, "mlp_bias": True, "sliding_window": 7}
    source = save_random_model(tmp_path / "model", "llama", **sizes)
    graph = lowered(save_quantized(source, tmp_path / "out", scheme="symmetric"), form)
    for node in graph.graph.nodes:
        if node.domain is None:
            continue
        op, given = OPS[node.op], dict(node.attrs)
        assert (given.pop("plugin_version"), given.pop("plugin_namespace")) == ("1", "")
        assert set(given) == {attribute.name for attribute in op.attributes}
        values = op.read(given)
        shapes = [[-1 if isinstance(n, str) else n for n in t.shape] for t in node.inputs]
        op.check_shapes(values, shapes)
        dtypes = [onnx.helper.tensor_dtype_to_np_dtype(t.dtype).name if isinstance(t, gs.Variable)
                  else graph.weights[t.name].dtype
                  for t in node.inputs]  # fmt: skip
        op.check_dtypes(values, dtypes)


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("decomposed")])
def test_decomposed_graphs_have_operators_of_opset_17_only(
    form: str, tiny_checkpoint: Path
) -> None:
    graph = lowered(tiny_checkpoint, form)
    assert graph.graph.opset == 17
    for node in graph.graph.nodes:
        if node.domain is None:
            schema = onnx.defs.get_schema(node.op, 17, "")
            assert set(node.attrs) <= set(schema.attributes), node.name


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_has_a_type_and_a_shape(form: str, symmetric: Path) -> None:
    names = []
    for node in lowered(symmetric, form).graph.nodes:
        names.append(node.name)
        for tensor in node.outputs:
            assert tensor.dtype is not None and tensor.shape is not None, tensor.name
    assert len(set(names)) == len(names)


def test_the_manifest_says_what_the_graph_asks_for(symmetric: Path, export: Export) -> None:
    found = {}
    for form in FORMS:
        manifest = export(symmetric, form_recipe(form, "float16"), lm_head_bits=8).manifest
        uses = () if manifest.plugin is None else manifest.plugin.ops
        found[form] = (manifest.opset, manifest.min_runtime_version, uses)
        name, linear, attention = FORMS[form]
        assert (manifest.linear, manifest.attention) == (linear, attention)
        assert manifest.runtime == load_recipe(name).runtime.backend
        dims = dict((port.name, port.shape) for port in manifest.inputs)
        assert dims["past.1.value"] == ("batch", 2, MAX_POSITIONS, 32)
    both = ("CachedAttention", "W4A16Linear")
    assert found == {
        "plugin": (24, "1.7", both),
        "native attention": (24, "1.7", both[1:]),
        "native linears": (24, "1.7", both[:1]),
        "native": (24, "1.7", ()),
        "decomposed": (17, "10.3", both),
        "decomposed attention": (17, "10.3", both[1:]),
    }
    plugin = export(symmetric, form_recipe("plugin", "float16"))
    use = Bundle.open(plugin.path).manifest.plugin
    assert use is not None
    assert (use.ops, use.version, use.layout_version) == (both, "1", 1)
    assert use.attributes["W4A16Linear"]["bits"] == (4,)


def test_versions_of_tensorrt(symmetric: Path, export: Export) -> None:
    jetson = load_recipe("jetson-orin-nano-8gb")
    for version, opset, oldest in (("10.16", 24, "10.15"), ("11.1", 24, "10.15"),
                                   ("10.9", 17, "10.3"), ("10.3.0", 17, "10.3")):  # fmt: skip
        recipe = jetson.overridden({"runtime.version": version, "export.context": 64})
        manifest = export(symmetric, recipe).manifest
        assert (manifest.opset, manifest.min_runtime_version) == (opset, oldest)
    with pytest.raises(ConfigError, match=r"has version 8\.6 .* made for 10\.3 and newer"):
        export(symmetric, jetson.overridden({"runtime.version": "8.6"}))
    with pytest.raises(ConfigError, match=r"version 1\.7 of runtime tensorrt; .*10\.3"):
        export(symmetric, load_recipe(RTX).overridden({"runtime.backend": "tensorrt"}))
    with pytest.raises(ConfigError, match=r"version 10\.16 of runtime tensorrt-rtx.*an RTX device"):
        export(symmetric, jetson.overridden({"runtime.backend": "tensorrt-rtx"}))


def test_native_linears_refuse_asymmetric_weights(
    llama: Path, llama_checkpoint: Path, symmetric: Path, tmp_path: Path
) -> None:
    """Each before anything is written, and before a model is quantized."""

    def refusal(model: Path, **arguments: Any) -> str:
        with pytest.raises(ModelError) as refused:
            recipe = awq_edge.load_recipe(RTX, linear="native", **arguments)
            awq_edge.export(model, tmp_path / "out", recipe)
        assert not list(tmp_path.iterdir())
        assert "have no zero points" in str(refused.value)
        return str(refused.value)

    text = refusal(llama_checkpoint)
    assert "model.layers.0.self_attn.q_proj is asymmetric" in text
    assert "--scheme symmetric, or give --linear plugin" in text
    assert "; give --scheme symmetric" in refusal(llama)  # a model without a tokenizer
    assert "give --lm-head-bits 8" in refusal(symmetric, lm_head_bits=4)
    whole = shutil.copytree(symmetric, tmp_path / "with a tokenizer")
    save_tokenizer(whole)
    awq_edge.export(whole, tmp_path / "out", awq_edge.load_recipe(RTX, linear="native"))


@pytest.mark.parametrize(
    ("recipe", "forms", "message"),
    [
        (JETPACK_6, {"linear": "native"}, r"--linear native needs TensorRT 10\.15.*opset 17"),
        (RTX, {"activation_dtype": "float32"}, r"--linear plugin --attention plugin executes"),
        (
            RTX,
            {"activation_dtype": "float32", "linear": "native"},
            r"--linear native --attention plugin executes .* has float32; give --activation-dtype",
        ),
        ("cpu", {"linear": "native"}, r"--linear native is for the runtimes tensorrt and "),
        ("cuda", {"attention": "plugin"}, r"--attention plugin is for .* export for cuda; leave"),
        (RTX, {"attention": "fused"}, r"--attention fused: allowed values: 'plugin' or 'native'"),
    ],
)
def test_forms_that_are_not_there(
    recipe: str, forms: dict[str, str], message: str, symmetric: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        awq_edge.export(symmetric, tmp_path / "out", awq_edge.load_recipe(recipe, **forms))
    assert not list(tmp_path.iterdir())


def test_heads_and_groups_that_the_plugin_does_not_have(tmp_path: Path, export: Export) -> None:
    heads = save_random_model(tmp_path / "heads", "llama", head_dim=24)
    with pytest.raises(ModelError, match=r"head size 24 is not one of 32, .*--attention native"):
        export(heads, form_recipe("plugin", "float16"))
    export(heads, form_recipe("native attention", "float16"))
    source = save_random_model(tmp_path / "model", "llama", intermediate_size=128)
    path = save_quantized(source, tmp_path / "groups", 16, "symmetric", layout=CT)
    with pytest.raises(ModelError, match=r"group_size 16 of model\.layers\.0.*--linear native"):
        export(path, form_recipe("plugin", "float16"))
    export(path, form_recipe("native", "float16"))


def test_an_export_repeats_to_the_byte(symmetric: Path, export: Export) -> None:
    for form in FORMS:
        recipe = form_recipe(form, "float16")
        assert export(symmetric, recipe).manifest.files == export(symmetric, recipe).manifest.files


@pytest.mark.parametrize("form", ["plugin", "native"])
def test_peak_memory_does_not_grow_with_layers(form: str, tmp_path: Path) -> None:
    """Eight more blocks of 0.6 MB of weights: the peak grows by 0.24 MB a block, which is what
    their nodes take in memory."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64}
    recipe = form_recipe(form, "float16")
    peaks, files = [], []
    for layers in (2, 10):
        source = save_random_model(
            tmp_path / f"{layers}", "llama", num_hidden_layers=layers, **sizes
        )
        path = save_quantized(source, tmp_path / f"{layers}-quantized", scheme="symmetric")
        peaks.append(peak_of_export(path, tmp_path / "bundle", recipe))
        files.append((tmp_path / "bundle" / "model.onnx.data").stat().st_size)
    assert files[1] - files[0] > 4_000_000
    assert peaks[1] - peaks[0] < 2_500_000
