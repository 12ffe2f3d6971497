"""Bundles for runtime cuda: every weight as the kernels read it, and what is refused before."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.artifacts.schema import parse_manifest, read_manifest
from awq_edge.errors import ArtifactError, ConfigError, ModelError
from awq_edge.exporter.bundle import export_checkpoint
from awq_edge.kernels.interface import LAYOUT_VERSION
from awq_edge.kernels.packing import PackedWeight, pack, pack_gate_up, unpack
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import NumberFormat, QuantizedWeight, Scheme, quantize
from awq_edge.program import kernel_layout
from awq_edge.program.sources import QuantizedWeights
from awq_edge.recipe.recipes import Recipe, load_recipe
from awq_edge.runtime.backends.cuda.program import ITEM_BYTES, Call, CudaProgram
from tests.tiny_models import save_tokenizer

from .conftest import Export
from .exports import kill_in_the_middle, peak_of_export
from .models import VOCAB, save_quantized, save_random_model

CT = "compressed-tensors"
PREFIX = "model.layers.1."


def cuda_recipe(**overrides: object) -> Recipe:
    return load_recipe("cuda").overridden({"export.prefill_chunk": 32} | overrides)


class Opened:
    """A bundle's program and the tensors of its weight file."""

    def __init__(self, bundle: Bundle) -> None:
        path = bundle.path / bundle.manifest.graph
        self.program: CudaProgram = read_manifest(CudaProgram, path)
        self.data = (bundle.path / bundle.manifest.weights).read_bytes()

    def tensor(self, name: str) -> np.ndarray:
        place = self.program.tensors[name]
        data = self.data[place.offset : place.offset + place.nbytes]
        return np.frombuffer(data, dtype=place.dtype).reshape(place.shape)

    def packed(self, call: Call) -> PackedWeight:
        inputs, values = call.inputs, call.attributes
        return PackedWeight(
            qweight=self.tensor(inputs["qweight"]),
            scales=self.tensor(inputs["scales"]),
            zeros=self.tensor(inputs["zeros"]) if "zeros" in inputs else None,
            bits=int(values["bits"]),
            group_size=int(values["group_size"]),
            in_features=int(values["in_features"]),
            out_features=int(values["out_features"]),
            paired=str(values["epilogue"]).endswith("_mul"),
        )


def joined(weights: list[QuantizedWeight]) -> QuantizedWeight:
    return QuantizedWeight(
        codes=np.concatenate([weight.codes for weight in weights]),
        scales=np.concatenate([weight.scales for weight in weights]),
        zeros=np.concatenate([weight.zeros for weight in weights]),
        bits=weights[0].bits,
    )


def linears(program: CudaProgram, layer: int = 1) -> Iterator[tuple[Call, list[str]]]:
    """The linears of a block, with the names of their parts."""
    attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    for call in program.calls:
        if call.operation.endswith("_linear") and call.name.startswith((attention, mlp)):
            parent, _, last = call.name.rpartition(".")
            yield call, [f"{parent}.{part}" for part in last.split("+")]


def named(program: CudaProgram, layer: int) -> Iterator[tuple[str, Call]]:
    """The linears of a block by the names of their modules within it."""
    for call, _ in linears(program, layer):
        yield call.name.rpartition(".")[2], call


def attention(program: CudaProgram, layer: int) -> Call:
    name = f"model.layers.{layer}.self_attn"
    (call,) = (each for each in program.calls if each.name == name)
    return call


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_code_scale_and_zero_arrives(
    bits: int, group_size: int, scheme: Scheme, tmp_path: Path, export: Export
) -> None:
    """One head of k and v; 64 and 192 channels, which end within a block."""
    sizes = {"intermediate_size": 192, "num_key_value_heads": 1}
    source = save_random_model(tmp_path / "model", "llama", **sizes)
    path = save_quantized(source, tmp_path / "out", group_size, scheme, bits=bits, layout=CT)
    opened, checkpoint = Opened(export(path, cuda_recipe())), Checkpoint.open(path)
    assert opened.program.layout_version == LAYOUT_VERSION
    for linear, names in linears(opened.program):
        expected = joined([checkpoint.quantized(name) for name in names])
        values = linear.attributes
        assert (values["bits"], values["group_size"]) == (max(bits, 3), group_size)
        # Two bits ride in three, whose middle is another one.
        assert ("zeros" not in linear.inputs) == (scheme == "symmetric" and bits != 2)
        found = unpack(opened.packed(linear))
        for part in ("codes", "scales", "zeros"):
            np.testing.assert_array_equal(getattr(found, part), getattr(expected, part), names[0])


def test_slabs_give_the_bytes_of_the_whole(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_random_model(tmp_path / "model", "llama", intermediate_size=200)
    path = save_quantized(source, tmp_path / "out")
    # down_proj's 200 channels do not divide into groups: it stays dense.
    monkeypatch.setattr(kernel_layout, "_SLAB_BYTES", 1)
    opened, checkpoint = Opened(export(path, cuda_recipe())), Checkpoint.open(path)
    *quantized, (down, _) = linears(opened.program)
    assert down.operation == "dense_linear" and len(quantized) == 3
    for linear, names in quantized:
        parts = [checkpoint.quantized(name) for name in names]
        woven = linear.attributes["epilogue"] == "silu_mul"
        whole = pack_gate_up(*parts) if woven else pack(joined(parts))
        found = opened.packed(linear)
        assert found.qweight.tobytes() == whole.qweight.tobytes()
        assert found.scales.tobytes() == whole.scales.tobytes()
        assert found.zeros is not None and whole.zeros is not None
        assert found.zeros.tobytes() == whole.zeros.tobytes()


def test_a_slab_whose_zeros_are_all_in_the_middle() -> None:
    """`pack` leaves such zeros out; other slabs of the weight have some."""
    from awq_edge.program.weights import of_array

    rng = np.random.default_rng(0)
    for bits in (4, 8):
        weight = quantize(rng.standard_normal((64, 64)), bits, 32, "asymmetric")
        weight.zeros[:32] = 2 ** (bits - 1)
        parts = QuantizedWeights(
            of_array("x.weight", weight.codes, "uint8", "blocks"),
            of_array("x.scales", weight.scales, "float16", "blocks"),
            of_array("x.zeros", weight.zeros, "uint8", "blocks"),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel_layout, "_SLAB_BYTES", 1)
            zeros = kernel_layout.packed_tensors("x", [parts], bits)["zeros"]
            expected = pack(weight).zeros
            assert expected is not None
            np.testing.assert_array_equal(zeros.array(), expected)
            np.testing.assert_array_equal(zeros.array(), expected)  # and once more


def test_files_and_manifest(llama_checkpoint: Path, export: Export) -> None:
    bundle = export(llama_checkpoint, cuda_recipe(), lm_head_bits=None, context=64)
    assert Bundle.open(bundle.path).manifest == bundle.manifest  # checks every hash
    manifest = bundle.manifest
    assert (manifest.runtime, manifest.graph, manifest.weights) == (
        "cuda",
        "model.json",
        "model.weights",
    )
    assert (manifest.opset, manifest.accuracy_level, manifest.min_runtime_version) == (None,) * 3
    assert manifest.inputs == manifest.outputs == ()
    assert (manifest.context, manifest.prefill_chunk, manifest.lm_head_bits) == (64, 32, 8)
    assert (manifest.activation_dtype, manifest.bits) == ("float16", 4)
    opened = Opened(bundle)
    places = sorted(opened.program.tensors.values(), key=lambda place: place.offset)
    ends = [place.offset + place.nbytes for place in places]
    assert all(place.offset % 4096 == 0 for place in places)
    assert all(end <= place.offset for end, place in zip(ends, places[1:], strict=False))
    assert len(opened.data) == ends[-1] == opened.program.weight_bytes
    assert list(opened.program.tensors.values()) == places  # in the order of use
    parts = manifest.part_bytes
    assert sum(parts.values()) == sum(place.nbytes for place in places)
    # By hand: embedding float16; lm_head of 96 = 6 tiles of 16 rows, 64 channels padded to 128,
    # 8 bits with scales of groups of 32, and the final norm.
    assert parts["embedding"] == VOCAB * 64 * 2
    assert parts["lm_head"] == VOCAB * 128 + VOCAB * 4 * 2 + 64 * 2
    assert parts["tables"] == 2 * 64 * 16 * 4


def test_an_export_repeats_to_the_byte(llama_checkpoint: Path, export: Export) -> None:
    first = export(llama_checkpoint, cuda_recipe(), lm_head_bits=4).manifest.files
    assert export(llama_checkpoint, cuda_recipe(), lm_head_bits=4).manifest.files == first


def test_linears_that_differ_are_not_merged(tmp_path: Path, export: Export) -> None:
    others = {
        f"{PREFIX}self_attn.k_proj": NumberFormat(8, 32, "symmetric"),
        f"{PREFIX}mlp.up_proj": NumberFormat(4, 64, "symmetric"),
    }
    source = save_random_model(tmp_path / "model", "llama", attention_bias=True)
    path = save_quantized(source, tmp_path / "out", layout=CT, others=others)
    opened = Opened(export(path, cuda_recipe()))
    first, second = (dict(named(opened.program, layer)) for layer in range(2))
    assert list(first) == ["q_proj+k_proj+v_proj", "o_proj", "gate_proj+up_proj", "down_proj"]
    assert list(second)[:2] == ["q_proj+v_proj", "k_proj"]
    assert list(second)[3:5] == ["gate_proj", "up_proj"]
    assert [second[name].attributes["bits"] for name in ("q_proj+v_proj", "k_proj")] == [4, 8]
    assert first["gate_proj+up_proj"].attributes["epilogue"] == "silu_mul"
    bias = opened.tensor(first["q_proj+k_proj+v_proj"].inputs["bias"])
    parts = [Checkpoint.open(path).dense(f"model.layers.0.self_attn.{n}_proj.bias") for n in "qkv"]
    np.testing.assert_array_equal(bias, np.concatenate(parts))
    # q and v are columns of one buffer, k is a buffer.
    q, k, v = (attention(opened.program, 1).inputs[part] for part in "qkv")
    views = opened.program.views
    assert views[q].buffer == views[v].buffer != k and k in opened.program.buffers
    assert (views[q].column, views[v].column) == (0, 128)


def test_unquantized(llama: Path, export: Export) -> None:
    opened = Opened(export(llama, cuda_recipe(), lm_head_bits=None))
    kinds = {call.operation for call in opened.program.calls}
    assert "dense_linear" in kinds and "w4a16_linear" not in kinds
    checkpoint = Checkpoint.open(llama)
    names = [f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up")]
    expected = np.concatenate([checkpoint.dense(name) for name in names]).astype(np.float16)
    both = dict(named(opened.program, 0))["gate_proj+up_proj"]
    np.testing.assert_array_equal(opened.tensor(both.inputs["weight"]), expected)


def test_a_fused_gate_and_up_are_woven(tmp_path: Path, export: Export) -> None:
    """Phi-3's: gate's rows, then up's, as one weight for the epilogue."""
    source = save_random_model(tmp_path / "model", "phi3", num_attention_heads=2)
    path = save_quantized(source, tmp_path / "out")
    opened, name = Opened(export(path, cuda_recipe())), "model.layers.1.mlp.gate_up_proj"
    (call,) = (call for call in opened.program.calls if call.name == name)
    assert call.attributes["epilogue"] == "silu_mul"
    whole, found = Checkpoint.open(path).quantized(name), unpack(opened.packed(call))
    np.testing.assert_array_equal(found.codes, whole.codes)
    np.testing.assert_array_equal(found.zeros, whole.zeros)


def test_buffers_share_an_arena(llama_checkpoint: Path, export: Export) -> None:
    """Two buffers that are in use at the same call never overlap; others do."""
    program = Opened(export(llama_checkpoint, cuda_recipe())).program
    whole = {name: name for name in program.buffers}
    whole |= {name: view.buffer for name, view in program.views.items()}
    uses: dict[str, list[int]] = {}
    for number, call in enumerate(program.calls):
        for name in (*call.inputs.values(), *call.outputs.values()):
            if name in whole:
                uses.setdefault(whole[name], []).append(number)
    for name in (program.logits, program.scores):
        uses[name].append(len(program.calls))
    shared = 0
    for (one, a), (other, b) in itertools.combinations(program.buffers.items(), 2):
        if a.rows != b.rows:
            continue
        ends = [buffer.offset + buffer.width * ITEM_BYTES[buffer.dtype] for buffer in (a, b)]
        overlap = a.offset < ends[1] and b.offset < ends[0]
        apart = max(uses[one]) < min(uses[other]) or max(uses[other]) < min(uses[one])
        assert apart or not overlap, (one, other)
        shared += overlap
    assert shared > 10
    sizes = sum(b.width * 2 for b in program.buffers.values() if b.rows == "tokens")
    assert program.arenas["tokens"] < sizes / 2


def test_bfloat16(llama_checkpoint: Path, export: Export) -> None:
    import ml_dtypes

    recipe = cuda_recipe(**{"runtime.activation_dtype": "bfloat16"})
    opened = Opened(export(llama_checkpoint, recipe))
    assert opened.program.activation_dtype == "bfloat16"
    kinds = {place.dtype for place in opened.program.tensors.values()}
    assert kinds == {"bfloat16", "float16", "float32", "int32"}
    source = Checkpoint.open(llama_checkpoint).dense("model.norm.weight")
    place = opened.program.tensors["model.norm.weight"]
    data = opened.data[place.offset : place.offset + place.nbytes]
    assert data == source.astype(ml_dtypes.bfloat16).tobytes()


def test_the_recipe_that_is_called_as_the_runtime(llama: Path, tmp_path: Path) -> None:
    """`awq-edge export MODEL --runtime cuda`: no recipe is named, and the CPU's has no CUDA."""
    llama = shutil.copytree(llama, tmp_path / "model")
    save_tokenizer(llama)
    bundle = awq_edge.export(llama, tmp_path / "bundle", load_recipe(runtime="cuda", method="none"))
    recipe = Recipe.model_validate_json((bundle.path / "recipe.json").read_text())
    assert (recipe.name, recipe.runtime.backend) == ("cuda", "cuda")
    for name in ("rtx-4060-laptop-8gb", "jetson-orin-nano-8gb"):
        bundle = awq_edge.export(
            llama,
            tmp_path / name,
            load_recipe(name, runtime="cuda", method="none", context=16),
        )
        assert (bundle.manifest.runtime, bundle.manifest.activation_dtype) == ("cuda", "float16")


def test_activations_that_the_kernels_do_not_have(llama: Path, export: Export) -> None:
    recipe = cuda_recipe(**{"runtime.activation_dtype": "float32"})
    with pytest.raises(ConfigError, match=r"float16 or bfloat16 activations.*has float32"):
        export(llama, recipe)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head_dim": 24}, "head size 24 is not one of 32, 64, 96, 128, 256"),
        ({"intermediate_size": 172}, "a width of 172 is not a multiple of 8"),
        ({"hidden_size": 68}, "a width of 68 is not a multiple of 8"),
    ],
)
def test_sizes_without_a_kernel(
    config: dict[str, int], message: str, tmp_path: Path, export: Export
) -> None:
    source = save_random_model(tmp_path / "model", "llama", **config)
    with pytest.raises(ModelError, match=rf"no CUDA kernel.*{message}.*--runtime onnxruntime"):
        export(source, cuda_recipe())
    assert not (tmp_path / "bundle").exists()


def test_groups_without_a_kernel(tmp_path: Path, export: Export) -> None:
    source = save_random_model(tmp_path / "model", "llama", intermediate_size=128)
    path = save_quantized(source, tmp_path / "out", group_size=16, layout=CT)
    with pytest.raises(ModelError, match=r"group_size 16 is not one of 32, .*\(model\.layers\.0\."):
        export(path, cuda_recipe())
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_scales_that_float16_cannot_hold(factor: float) -> None:
    """bfloat16 scales of other tools; the name of the linear is in the message."""
    from awq_edge.program.weights import of_array

    weight = quantize(np.random.default_rng(0).standard_normal((16, 64)), 4, 32, "symmetric")
    parts = QuantizedWeights(
        of_array("x.weight", weight.codes, "uint8", "blocks"),
        of_array(
            "x.scales", weight.scales.astype(np.float32) * np.float32(factor), "float32", "blocks"
        ),
        None,
    )
    with pytest.raises(ModelError, match=r"model\.x: scales from .* do not fit float16"):
        kernel_layout.packed_tensors("model.x", [parts], 4)["qweight"].array()


def test_a_program_of_another_version(llama: Path, export: Export) -> None:
    bundle = export(llama, cuda_recipe())
    path = bundle.path / "model.json"
    program = json.loads(path.read_text())
    for key, value, words in (
        ("format_version", 1, r"has format_version 1, this .* reads 2; .*export MODEL --runtime"),
        ("depth", 3, r"is not a program .*\(depth.*export MODEL"),
        ("calls", [{}], r"is not a program .*\(calls.*export MODEL"),
    ):
        data = json.dumps(program | {key: value}).encode()
        with pytest.raises(ArtifactError, match=rf"model\.json {words}"):
            parse_manifest(CudaProgram, data, str(path))


def test_a_killed_export_leaves_nothing_under_the_final_name(
    llama_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    kill_in_the_middle(llama_checkpoint, out, "cuda")
    export_checkpoint(llama_checkpoint, out, cuda_recipe(), model_name="x")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    Bundle.open(out)


def test_peak_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    """Eight more blocks of 0.9 MB of packed weights: the peak grows by their description alone."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64}
    peaks, files = [], []
    for layers in (2, 10):
        source = save_random_model(
            tmp_path / f"{layers}", "llama", num_hidden_layers=layers, **sizes
        )
        path = save_quantized(source, tmp_path / f"{layers}-quantized")
        peaks.append(peak_of_export(path, tmp_path / "bundle", cuda_recipe()))
        files.append((tmp_path / "bundle" / "model.weights").stat().st_size)
    assert files[1] - files[0] > 4_000_000
    assert peaks[1] - peaks[0] < 700_000
