"""Sessions of checkpoints of all bits, groups and layouts against torch on the dequantized weights.

The checkpoints of other tools are made up here as their configurations word them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import NumberFormat, Scheme, dequantize

from .conftest import Export, parity_recipe
from .models import save_quantized, save_random_model
from .test_parity import check_bundle, check_version

# int8 activations: 6e-3 a linear, which the sharp attention of these models multiplies by up to
# ten. What is packed wrong is off by about 1.
LEVEL_4_TOLERANCE = 0.15
CT = "compressed-tensors"
UP = "model.layers.0.mlp.up_proj"


def containers(bundle: Bundle) -> set[tuple[int, int]]:
    """(bits, block_size) of the bundle's MatMulNBits."""
    model = onnx.load(bundle.path / "model.onnx", load_external_data=False)
    found = set()
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            values = {a.name: a.i for a in node.attribute}
            found.add((values["bits"], values["block_size"]))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 192 / 64 = 3 groups: rows of zero points that end within a byte.
    path = tmp_path_factory.mktemp("model")
    return save_random_model(path, "llama", intermediate_size=192, attention_bias=True)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bits_groups_and_schemes(
    bits: int,
    group_size: int,
    scheme: Scheme,
    model: Path,
    tmp_path: Path,
    export: Export,
) -> None:
    checkpoint = save_quantized(model, tmp_path / "out", group_size, scheme, bits=bits, layout=CT)
    bundle = export(checkpoint)
    manifest = bundle.manifest
    assert (manifest.bits, manifest.group_size, manifest.scheme) == (bits, group_size, scheme)
    assert containers(bundle) == {(max(bits, 4), group_size)}
    check_bundle(bundle, checkpoint)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_weight_arrives_through_int8_activations(
    bits: int, group_size: int, scheme: Scheme, tmp_path: Path, export: Export
) -> None:
    """Unit vectors are exact in int8 too: they give the dequantized weights of the bundle's node.

    down_proj alone reads its input, so the node is not merged with others.
    """
    source = save_random_model(tmp_path / "model", "llama", intermediate_size=384)
    checkpoint = save_quantized(source, tmp_path / "out", group_size, scheme, bits=bits, layout=CT)
    bundle = export(checkpoint, parity_recipe(**{"runtime.accuracy_level": 4}))
    # 2 bits as they are where int8 activations have a kernel for them; 3 bits never.
    assert containers(bundle) == {({3: 4}.get(bits, bits), group_size)}
    check_version(bundle)
    model = onnx.load(bundle.path / "model.onnx")
    (node,) = [n for n in model.graph.node if n.name == "/model/layers.1/mlp/down_proj/MatMulNBits"]
    part = onnx.utils.Extractor(model).extract_model([node.input[0]], list(node.output))
    session = onnxruntime.InferenceSession(part.SerializeToString())
    (found,) = session.run(None, {node.input[0]: np.eye(384, dtype=np.float32)[None]})
    opened = Checkpoint.open(checkpoint).quantized("model.layers.1.mlp.down_proj")
    expected = dequantize(opened)
    assert np.abs(found[0].T - expected).max() < 1e-5 * np.abs(expected).max()


def test_half_activations(model: Path, tmp_path: Path, export: Export) -> None:
    """Their 2-bit kernel is newer than the float32 one: 4-bit containers instead."""
    recipe = parity_recipe(**{"runtime.activation_dtype": "float16", "runtime.accuracy_level": 4})
    checkpoint = save_quantized(model, tmp_path / "out", bits=2, layout=CT)
    bundle = export(checkpoint, recipe)
    assert containers(bundle) == {(4, 32)}
    check_bundle(bundle, checkpoint, LEVEL_4_TOLERANCE)


def test_linears_that_differ(model: Path, tmp_path: Path, export: Export) -> None:
    """One wider, one of other groups, one unquantized, an lm_head of 8 bits: each as it is."""
    others = {
        UP: NumberFormat(8, 64, "symmetric"),
        "model.layers.1.self_attn.o_proj": NumberFormat(2, 32, "asymmetric"),
        "lm_head": NumberFormat(8, 32, "symmetric"),
    }
    checkpoint = save_quantized(model, tmp_path / "out", bits=3, layout=CT, others=others)
    bundle = export(checkpoint, lm_head_bits=None)
    manifest = bundle.manifest
    assert (manifest.bits, manifest.group_size, manifest.lm_head_bits) == (3, 32, 8)
    assert manifest.other_formats == {
        UP: "8-bit, group 64, symmetric",
        "model.layers.1.self_attn.o_proj": "2-bit, group 32, asymmetric",
    }
    check_bundle(bundle, checkpoint)


# Checkpoints of other tools


def edited(source: Path, out: Path, change: Any) -> Path:
    """A copy whose tensors and quantization_config `change(tensors, config)` has edited."""
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    change(tensors, config["quantization_config"])
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain")
    return save_quantized(model, path, scheme="symmetric", layout=CT)


def test_bfloat16_scales(plain: Path, tmp_path: Path, export: Export) -> None:
    def change(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        for name in tensors:
            if name.endswith("weight_scale"):
                tensors[name] = (tensors[name] * 1e-4).bfloat16()  # below what float16 holds
        del config["awq_edge"]

    checkpoint = edited(plain, tmp_path / "other", change)
    bundle = export(checkpoint)
    assert bundle.manifest.method == CT  # nobody says which
    check_bundle(bundle, checkpoint)


def test_one_group_a_row(model: Path, tmp_path: Path, export: Export) -> None:
    """strategy "channel": 192 channels share a scale; the node has three blocks of 64."""
    linears = [
        f"model.layers.{layer}.{name}"
        for layer in range(2)
        for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    sizes = dict.fromkeys(linears, 64) | {name: 192 for name in linears if "down" in name}
    others = {name: NumberFormat(4, size, "asymmetric") for name, size in sizes.items()}
    source = save_quantized(model, tmp_path / "source", layout=CT, others=others)

    def change(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        groups = config["config_groups"]
        for group in list(groups.values())[1:]:
            group["weights"] |= {"strategy": "channel", "group_size": None}
        groups["group_1"]["targets"] = [r"re:.*mlp\.(gate|up)_proj$"]
        groups["group_2"]["targets"] = [r"re:.*down_proj$"]

    checkpoint = edited(source, tmp_path / "other", change)
    bundle = export(checkpoint)
    assert containers(bundle) == {(4, 32), (4, 64)}
    assert bundle.manifest.other_formats["model.layers.0.mlp.down_proj"].startswith(
        "4-bit, group 192"
    )
    check_bundle(bundle, checkpoint)


def test_groups_too_small_for_the_runtime(model: Path, tmp_path: Path, export: Export) -> None:
    checkpoint = save_quantized(model, tmp_path / "out", 8, layout=CT)
    with pytest.raises(ModelError, match="group_size 8: onnxruntime needs groups that are multip"):
        export(checkpoint)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_reference_compressor_is_read(bits: int, model: Path, tmp_path: Path) -> None:
    """What compressed-tensors itself wrote, codes and zero points chosen by it."""
    pytest.importorskip("compressed_tensors", reason="needs Python 3.11")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    source = save_quantized(model, tmp_path / "source", bits=bits, layout=CT)
    dense = load_file(model / "model.safetensors")[f"{UP}.weight"]
    arguments = QuantizationArgs(num_bits=bits, symmetric=False, group_size=32)
    settings = QuantizationScheme(targets=["Linear"], weights=arguments)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    limit = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(192, 2, generator=generator).bfloat16() * 0.1
    zero = torch.randint(-limit, limit, (192, 2), generator=generator).to(torch.int8)
    state = {"weight": dense, "weight_scale": scale, "weight_zero_point": zero}
    packed = compressor.compress(state, settings)
    expected = compressor.decompress(packed, settings)["weight"]

    def change(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        tensors |= {f"{UP}.{name}": tensor for name, tensor in packed.items()}

    checkpoint = Checkpoint.open(edited(source, tmp_path / "other", change))
    found = dequantize(checkpoint.quantized(UP))
    steps = np.abs(found - expected.float().numpy()) / np.abs(expected.float().numpy()).max()
    assert steps.max() < 2**-8  # it multiplies in bfloat16
