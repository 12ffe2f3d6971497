"""Checkpoints as other tools write them: what their configurations say, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from awq_edge.errors import ModelError
from awq_edge.model import bit_strings, w4a16
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import layouts, quantization_config
from awq_edge.model.layouts.base import StoredConfig
from awq_edge.model.w4a16 import NumberFormat, Scheme

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
UP = "model.layers.0.mlp.up_proj"
# As llm-compressor writes them: every key of the schema, most of them at rest.
WEIGHTS: dict[str, Any] = {
    "actorder": None,
    "block_structure": None,
    "dynamic": False,
    "group_size": 32,
    "num_bits": 4,
    "observer": "minmax",
    "observer_kwargs": {},
    "strategy": "group",
    "symmetric": True,
    "type": "int",
}


def quantization(**weights: Any) -> dict[str, Any]:
    return {
        "config_groups": {
            "group_0": {
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": WEIGHTS | weights,
            }
        },
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def write(
    path: Path, number_format: NumberFormat, config: dict[str, Any], loose: bool = False
) -> dict[str, w4a16.QuantizedWeight]:
    """A checkpoint whose every linear is quantized; what its tensors stand for, by name."""
    rng = np.random.default_rng(0)
    bits = number_format.bits
    tensors: dict[str, np.ndarray] = {}
    expected = {}

    def packed(codes: np.ndarray) -> np.ndarray:
        if not loose:
            return bit_strings.pack(codes, bits)
        lanes = 32 // bits
        words = np.zeros((len(codes), -(-codes.shape[1] // lanes)), np.uint32)
        for column in range(codes.shape[1]):
            place = codes[:, column].astype(np.uint32) << (bits * (column % lanes))
            words[:, column // lanes] |= place
        return words.view(np.int32)

    for name, shape in decoder_from_config(CONFIG).weight_shapes().items():
        values = rng.normal(size=shape).astype(np.float16)
        linear = name.removesuffix(".weight")
        if len(shape) != 2 or "embed" in name:
            tensors[name] = values
            continue
        found = w4a16.quantize(values, bits, number_format.group_size, number_format.scheme)
        expected[linear] = found
        tensors[f"{linear}.weight_packed"] = packed(found.codes)
        tensors[f"{linear}.weight_scale"] = found.scales
        tensors[f"{linear}.weight_shape"] = np.array(shape, np.int64)
        if number_format.scheme == "asymmetric":
            zeros = packed(np.ascontiguousarray(found.zeros.T)).T
            tensors[f"{linear}.weight_zero_point"] = np.ascontiguousarray(zeros)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, path / "model.safetensors")
    return expected


def check(path: Path, expected: dict[str, w4a16.QuantizedWeight]) -> Checkpoint:
    checkpoint = Checkpoint.open(path)
    for linear, weight in expected.items():
        found = checkpoint.quantized(linear)
        for field in ("codes", "scales", "zeros"):
            np.testing.assert_array_equal(
                getattr(found, field), getattr(weight, field), err_msg=f"{linear} {field}"
            )
    return checkpoint


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bits_and_schemes(bits: int, scheme: Scheme, tmp_path: Path) -> None:
    number_format = NumberFormat(bits, 32, scheme)
    config = quantization(num_bits=bits, symmetric=scheme == "symmetric")
    expected = write(tmp_path, number_format, {"quantization_config": config})
    checkpoint = check(tmp_path, expected)
    assert checkpoint.linear_format(UP) == number_format
    found = checkpoint.quantization
    assert found is not None
    assert (found.method, found.layout) == ("compressed-tensors", "compressed-tensors")


def test_three_bits_of_before_0_18(tmp_path: Path) -> None:
    """Ten codes a word, along out_features too: 96 rows of zero points make 10 words, not 9."""
    number_format = NumberFormat(3, 32, "asymmetric")
    config = {"quantization_config": quantization(num_bits=3, symmetric=False)}
    expected = write(tmp_path, number_format, config, loose=True)
    assert load_file(tmp_path / "model.safetensors")[f"{UP}.weight_zero_point"].shape == (10, 2)
    check(tmp_path, expected)


def test_early_checkpoints(tmp_path: Path) -> None:
    """compression_config, one level down; zero points of int8, signed and not packed."""
    config = quantization(symmetric=False)
    status = {key: config.pop(key) for key in ("quantization_status", "format")}
    nested = {"compression_config": {"quantization_config": config, **status}}
    expected = write(tmp_path, NumberFormat(4, 32, "asymmetric"), nested)
    tensors = load_file(tmp_path / "model.safetensors")
    for linear, weight in expected.items():
        signed = weight.zeros.astype(np.int16) - 8
        tensors[f"{linear}.weight_zero_point"] = signed.astype(np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    check(tmp_path, expected)


def test_one_group_a_row(tmp_path: Path) -> None:
    """Strategy "channel" by that name, or by group_size -1 without a strategy."""
    for weights in (
        {"strategy": "channel", "group_size": None},
        {"strategy": None, "group_size": -1},
    ):
        config = {"quantization_config": quantization(**weights)}
        write(tmp_path, NumberFormat(4, 32, "symmetric"), config)
        tensors = load_file(tmp_path / "model.safetensors")
        for name in tensors:
            if name.endswith("weight_scale"):
                tensors[name] = np.ascontiguousarray(tensors[name][:, :1])
        save_file(tensors, tmp_path / "model.safetensors")
        checkpoint = Checkpoint.open(tmp_path)
        assert checkpoint.linear_format(UP) == NumberFormat(4, 64, "symmetric")
        assert checkpoint.linear_format("model.layers.0.mlp.down_proj").group_size == 96
        assert checkpoint.quantized(UP).group_size == 64


def test_bfloat16_scales_stay_exact(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs the [host] extra")
    config = {"quantization_config": quantization()}
    write(tmp_path, NumberFormat(4, 32, "symmetric"), config)
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"{UP}.weight_scale"
    tensors[name] = (tensors[name] * np.float32(1e-5)).astype(ml_dtypes.bfloat16)
    save_file(tensors, tmp_path / "model.safetensors")
    found = Checkpoint.open(tmp_path).quantized(UP)
    assert found.scales.dtype == np.float32
    np.testing.assert_array_equal(found.scales, tensors[name].astype(np.float32))


def test_targets_go_from_the_name_to_the_class() -> None:
    """The package's own order: names, then regular expressions, then classes; `ignore` first."""
    four, eight, two = (NumberFormat(bits, 32, "symmetric") for bits in (4, 8, 2))
    stored = StoredConfig(
        method="x",
        targets={"Linear": four, r"re:.*up_proj$": eight, UP: two},
        ignore=("lm_head", r"re:.*layers\.3\."),
    )
    assert stored.format_of((UP,), 64) == two
    assert stored.format_of((UP.replace("0", "1"),), 64) == eight
    assert stored.format_of((UP.replace("0", "3"),), 64) is None
    assert stored.format_of((UP.replace("up", "down"),), 64) == four
    assert stored.format_of(("lm_head",), 64) is None


def test_targets_as_the_package_matches_them() -> None:
    pytest.importorskip("compressed_tensors", reason="needs Python 3.11")
    import torch
    from compressed_tensors.utils.match import match_targets

    linear = torch.nn.Linear(2, 2)
    targets = ["Linear", r"re:.*proj$", r"re:.*mlp.*", "lm_head", UP, r"re:model\.layers\.1\..*"]
    formats = {
        target: NumberFormat(8, 32 * (i + 1), "symmetric") for i, target in enumerate(targets)
    }
    stored = StoredConfig(method="x", targets=formats)
    for name in (UP, UP.replace("0", "1"), "lm_head", "a.b", "model.layers.1.self_attn.q_proj"):
        first = match_targets(name, linear, targets)[0]
        assert stored.format_of((name,), 64) == formats[first], name


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"format": "int-quantized"}, "format 'int-quantized'; supported: pack-quantized"),
    ({"format": "marlin-24"}, "format 'marlin-24'"),
    ({"kv_cache_scheme": {"num_bits": 8}}, "has a kv_cache_scheme; supported: weights alone"),
    ({"transform_config": {"config_groups": {"u": {}}}}, "has a transform_config"),
    ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "has a sparsity_config"),
    ({"config_groups": {}}, "has no config_groups"),
    ({"config_groups": {"W4A16": ["Linear"]}}, "config_groups.W4A16' must be an object"),
]
REFUSED_GROUPS: list[tuple[dict[str, Any], str]] = [
    ({"input_activations": {"num_bits": 8}}, "quantizes activations (input_activations)"),
    ({"output_activations": {"num_bits": 8}}, "quantizes activations (output_activations)"),
    ({"format": "nvfp4-pack-quantized"}, "has format 'nvfp4-pack-quantized'"),
    ({"weights": None}, "has no table of weights"),
    ({"targets": None}, "has no list of targets"),
]
REFUSED_WEIGHTS: list[tuple[dict[str, Any], str]] = [
    ({"actorder": "group"}, "actorder 'group', whose groups are not of neighbouring channels"),
    ({"actorder": "dynamic"}, "actorder 'dynamic'"),
    ({"actorder": True}, "actorder 'True'"),
    ({"type": "float"}, "type 'float' of 4 bits (NVFP4 or MXFP4); supported: int"),
    ({"num_bits": 5}, "num_bits 5; supported: 2, 3, 4, 8"),
    ({"strategy": "tensor", "group_size": None}, "strategy 'tensor'; supported: group, channel"),
    ({"strategy": None, "group_size": None}, "strategy 'tensor'"),
    ({"strategy": "block"}, "strategy 'block'"),
    ({"dynamic": True}, "dynamic true; supported: False"),
    ({"group_size": 0}, "group_size 0; must be a positive number"),
]


def refused(path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        layouts()["compressed-tensors"].read_config(config, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_other_kinds_are_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(tmp_path, quantization() | change, message)


@pytest.mark.parametrize(("change", "message"), REFUSED_GROUPS)
def test_other_groups_are_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = quantization()
    config["config_groups"]["group_0"] |= change
    refused(tmp_path, config, message)


@pytest.mark.parametrize(("change", "message"), REFUSED_WEIGHTS)
def test_other_weights_are_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(tmp_path, quantization(**change), message)


@pytest.mark.parametrize("order", ["weight", "static", None, False])
def test_orders_that_change_nothing_stored_are_read(order: object, tmp_path: Path) -> None:
    stored = layouts()["compressed-tensors"].read_config(quantization(actorder=order), tmp_path)
    assert stored.targets == {"Linear": NumberFormat(4, 32, "symmetric")}


def test_config_and_files_that_disagree(tmp_path: Path) -> None:
    config = quantization()
    four = NumberFormat(4, 32, "symmetric")
    config["ignore"].append(UP)
    write(tmp_path, four, {"quantization_config": config})
    with pytest.raises(ModelError, match=f"'{UP}' is quantized, but config.json does not say how"):
        Checkpoint.open(tmp_path)
    config = quantization()
    write(tmp_path, four, {"quantization_config": config})
    tensors = load_file(tmp_path / "model.safetensors")
    dense = {n: v for n, v in tensors.items() if not n.startswith(UP)}
    save_file(
        dense | {f"{UP}.weight": np.zeros((96, 64), np.float16)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match=f"says that '{UP}' is quantized, but it is not"):
        Checkpoint.open(tmp_path)
    save_file(
        tensors | {f"{UP}.weight_g_idx": np.zeros(64, np.int32)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match=r"unexpected weight '.*up_proj\.weight_g_idx'"):
        Checkpoint.open(tmp_path)
    name = f"{UP}.weight_shape"
    save_file(tensors | {name: np.array([96, 32])}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"'{UP}': weight_shape \[96, 32\] does not fit"):
        Checkpoint.open(tmp_path).quantized(UP)


def test_groups_that_do_not_fit_are_named(tmp_path: Path) -> None:
    config = quantization(group_size=64)
    write(tmp_path, NumberFormat(4, 32, "symmetric"), {"quantization_config": config})
    with pytest.raises(ModelError, match=r"down_proj' cannot be quantized: in_features 96 is not"):
        Checkpoint.open(tmp_path)


def test_a_quantized_embedding_is_refused(tmp_path: Path) -> None:
    config = {"quantization_config": quantization()}
    write(tmp_path, NumberFormat(4, 32, "symmetric"), config)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.embed_tokens.weight_packed"] = np.zeros((40, 8), np.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'model\.embed_tokens' is quantized .*; embeddings"):
        Checkpoint.open(tmp_path)


def test_llm_awqs_own_keys(tmp_path: Path) -> None:
    config = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}
    stored = layouts()["awq"].read_config(config, tmp_path)
    assert stored.format_of(("x",), 128) == NumberFormat(4, 64, "asymmetric")
    whole = layouts()["awq"].read_config(config | {"q_group_size": -1}, tmp_path)
    assert whole.format_of(("x",), 128) == NumberFormat(4, 128, "asymmetric")


def test_unquantized_models_have_no_config() -> None:
    assert quantization_config({"model_type": "llama"}) is None
