"""Names and configurations of other tools whose tensors are the same bytes as ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from awq_edge.errors import ModelError
from awq_edge.fit.fit import Asked, fit
from awq_edge.fit.models import find_model
from awq_edge.inspect.artifact import inspect_artifact
from awq_edge.model import w4a16
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import load_recipe

from .quantized_models import (
    FORMAT,
    LLAMA,
    MIXTRAL,
    QWEN2_VL,
    QWEN3_MOE,
    SIZES,
    Quantized,
    awq_tensors,
    compressed,
    make,
    packed_tensors,
    save,
)


def check(path: Path, expected: Quantized) -> Checkpoint:
    """The checkpoint has these codes, `inspect` finds nothing wrong, and `fit` knows it."""
    checkpoint = Checkpoint.open(path)
    assert expected
    for linear, weight in expected.items():
        found = checkpoint.quantized(linear)
        for field in ("codes", "scales", "zeros"):
            np.testing.assert_array_equal(getattr(found, field), getattr(weight, field))
    inspected = inspect_artifact(path)
    assert inspected.problems == () and inspected.quantization is not None
    report = fit(find_model(str(path)), load_recipe("cpu"), Asked())
    assert report.settings.bits == 4
    return checkpoint


AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
AUTO_ROUND: dict[str, Any] = {
    "quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4,
    "group_size": 32, "sym": True, "data_type": "int", "block_name_to_quantize": "model.layers",
}  # fmt: skip


@pytest.mark.parametrize(
    "quantization",
    [
        AWQ | {"version": None},
        AWQ | {"version": "GEMM"},
        AWQ | {"bits": "4"},
        AWQ | {"bits": None, "version": None},
        AWQ | {"group_size": "32", "modules_to_not_convert": None},
        AWQ | {"zero_point": None, "backend": None, "awq_edge": None},
        {"quant_method": "awq", "group_size": 32},
        {"quant_method": "awq", "format": "gemm", "checkpoint_format": "gemm", "group_size": 32},
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"},
        AUTO_ROUND,
        AUTO_ROUND | {"quant_method": "intel/auto-round"},
        AUTO_ROUND | {"extra_config": {"lm_head": {"bits": 16, "data_type": "float"}}},
    ],
)
def test_configurations_of_the_same_awq(tmp_path: Path, quantization: dict[str, Any]) -> None:
    tensors, expected = make(LLAMA, awq_tensors)
    path = save(tmp_path, tensors, LLAMA | {"quantization_config": quantization})
    assert check(path, expected).main_format == FORMAT


def test_missing_keys_of_awq_are_transformers_defaults(tmp_path: Path) -> None:
    """Four bits, groups of 128, version gemm; asked of transformers where that is here."""
    sizes = LLAMA | {"hidden_size": 128, "intermediate_size": 256}
    tensors, expected = make(sizes, awq_tensors, group_size=128)
    path = save(tmp_path, tensors, sizes | {"quantization_config": {"quant_method": "awq"}})
    found = check(path, expected).main_format
    assert found is not None and (found.bits, found.group_size) == (4, 128)
    transformers = pytest.importorskip("transformers", reason="needs the [host] extra")
    defaults = transformers.AwqConfig()
    assert (defaults.bits, defaults.group_size, defaults.format) == (4, 128, "gemm")
    assert transformers.AwqConfig(version=None).format == "gemm"


@pytest.mark.parametrize(
    "change", [{"bits": 3}, {"bits": "many"}, {"bits": True}, {"group_size": 0}, {"bits": 4.5},
               {"group_size": "x"}]
)  # fmt: skip
def test_other_values_of_awq_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    tensors, _ = make(LLAMA, awq_tensors)
    path = save(tmp_path, tensors, LLAMA | {"quantization_config": AWQ | change})
    with pytest.raises(ModelError, match=f"quantization_config has {next(iter(change))}"):
        Checkpoint.open(path)


@pytest.mark.parametrize("key", ["model.layers.1.mlp.up_proj", r"model\.layers\.1\.mlp\.up_p.*"])
def test_groups_of_single_linears_of_auto_round(tmp_path: Path, key: str) -> None:
    linear = "model.layers.1.mlp.up_proj"
    tensors, expected = make(LLAMA, awq_tensors)
    values = w4a16.dequantize(expected[linear])
    expected[linear] = w4a16.quantize(values, 4, 64, "asymmetric")
    tensors |= awq_tensors(linear, expected[linear])
    own = AUTO_ROUND | {"extra_config": {key: {"bits": 4, "group_size": 64}}}
    path = save(tmp_path, tensors, LLAMA | {"quantization_config": own})
    checkpoint = check(path, expected)
    assert checkpoint.linear_format(linear).group_size == 64
    assert checkpoint.main_format == FORMAT


def test_single_experts_under_the_names_in_memory(tmp_path: Path) -> None:
    """llm-compressor unpacks the experts of transformers 5 into linears of these names."""
    tensors, expected = make(MIXTRAL, packed_tensors)
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}

    def renamed(name: str) -> str:
        for disk, memory in names.items():
            name = name.replace(f".{disk}.", f".{memory}.")
        return name.replace("block_sparse_moe", "mlp")

    quantization = compressed(ignore=("lm_head", r"re:.*mlp\.gate$"), symmetric=False)
    moved = {renamed(name): value for name, value in tensors.items()}
    assert "model.layers.0.mlp.experts.3.gate_proj.weight_packed" in moved
    assert "model.layers.0.mlp.gate.weight" in moved
    check(save(tmp_path, moved, MIXTRAL | {"quantization_config": quantization}), expected)
    # Half of the rename: the module alone.
    half = {name.replace("block_sparse_moe", "mlp"): value for name, value in tensors.items()}
    check(save(tmp_path, half, MIXTRAL | {"quantization_config": quantization}), expected)


@pytest.mark.parametrize("joint", [".weight_", "_"])
@pytest.mark.parametrize("config", [MIXTRAL, QWEN3_MOE], ids=["mixtral", "qwen3_moe"])
def test_packed_experts_that_are_fused(tmp_path: Path, config: dict[str, Any], joint: str) -> None:
    """Single linears put one upon the other, gate rows before up rows, as llm-compressor does."""
    tensors, expected = make(config, packed_tensors)
    decoder = decoder_from_config(config)
    names = decoder.architecture.experts
    assert names is not None
    for layer in range(2):
        prefix = decoder.layer_prefix(layer)
        for part in ("packed", "scale", "zero_point", "shape"):

            def take(template: str, part: str = part, prefix: str = prefix) -> np.ndarray:
                return np.stack([
                    tensors.pop(f"{prefix}.{template.format(expert=e)}.weight_{part}")
                    for e in range(4)
                ])  # fmt: skip

            gate, up = (take(template) for template in names.mlp_in)
            module = f"{prefix}.mlp.experts"
            tensors[f"{module}.gate_up_proj{joint}{part}"] = np.concatenate([gate, up], axis=1)
            tensors[f"{module}.down_proj{joint}{part}"] = take(names.mlp_out)
    if config is MIXTRAL:
        tensors = {name.replace("block_sparse_moe", "mlp"): v for name, v in tensors.items()}
    quantization = compressed(ignore=("lm_head", r"re:.*mlp\.gate$"), symmetric=False)
    check(save(tmp_path, tensors, config | {"quantization_config": quantization}), expected)


@pytest.mark.parametrize(
    "target",
    [
        r"re:.*mlp\.experts\.\d+\.(gate|up|down)_proj$",
        r"re:.*block_sparse_moe\.experts.*",
        r"re:.*mlp\.experts\.(gate_up|down)_proj$",
        r"re:.*\.experts\..*w[123]$",
    ],
)
def test_targets_by_whatever_name_the_experts_had(tmp_path: Path, target: str) -> None:
    tensors, expected = make(MIXTRAL, packed_tensors, keep=("self_attn",))
    quantization = compressed(target, symmetric=False)
    check(save(tmp_path, tensors, MIXTRAL | {"quantization_config": quantization}), expected)


@pytest.mark.parametrize("ignored", ["model.language_model.layers.1.mlp.up_proj",
                                     "model.layers.1.mlp.up_proj",
                                     r"re:model\.language_model.*\.1\.mlp\.up.*"])  # fmt: skip
@pytest.mark.parametrize("place", ["top", "text_config"])
def test_names_in_memory_of_vision_language_models(
    tmp_path: Path, ignored: str, place: str
) -> None:
    keep = "layers.1.mlp.up_proj"
    tensors, expected = make(QWEN2_VL, packed_tensors, keep=(keep,))
    quantization = compressed(ignore=("lm_head", ignored, r"re:.*visual.*"), symmetric=False)
    config: dict[str, Any] = dict(QWEN2_VL)
    if place == "top":
        config["quantization_config"] = quantization
    else:
        config["text_config"] = {**SIZES, "quantization_config": quantization}
    checkpoint = check(save(tmp_path, tensors, config), expected)
    assert not checkpoint.is_quantized(f"model.{keep}")
    # And with the names of the class in the file itself.
    moved = {
        name.replace("model.", "model.language_model.", 1).replace("visual.", "model.visual.", 1):
        value for name, value in tensors.items()
    }  # fmt: skip
    check(save(tmp_path, moved, config), expected)


def test_targets_with_names_in_memory(tmp_path: Path) -> None:
    tensors, expected = make(QWEN2_VL, packed_tensors)
    quantization = compressed(r"re:model\.language_model\.layers\..*proj$", symmetric=False)
    check(save(tmp_path, tensors, QWEN2_VL | {"quantization_config": quantization}), expected)


@pytest.mark.parametrize("stored", ["mixed-precision", None])
def test_formats_of_groups(tmp_path: Path, stored: str | None) -> None:
    tensors, expected = make(LLAMA, packed_tensors)
    quantization = compressed(symmetric=False) | {"format": stored}
    quantization["config_groups"]["group_0"]["format"] = "pack-quantized"
    path = save(tmp_path, tensors, LLAMA | {"quantization_config": quantization})
    check(path, expected)
    quantization["config_groups"]["group_0"]["format"] = "float-quantized"
    save(tmp_path, tensors, LLAMA | {"quantization_config": quantization})
    with pytest.raises(ModelError, match="format 'float-quantized'"):
        Checkpoint.open(path)


KEPT = {
    "router": (MIXTRAL, "model.layers.0.block_sparse_moe.gate", (32, 64)),
    "router in memory": (QWEN3_MOE, "model.layers.1.mlp.gate", (32, 64)),
    "vision tower": (QWEN2_VL, "visual.blocks.0.attn.qkv", (96, 64)),
    "embedding": (LLAMA, "model.embed_tokens", (40, 64)),
    "tied output layer": (LLAMA, "lm_head", (40, 64)),
}


@pytest.mark.parametrize("kind", list(KEPT))
@pytest.mark.parametrize("layout", ["awq", "compressed-tensors"])
def test_quantized_modules_that_are_kept_in_16_bits_are_named(
    tmp_path: Path, kind: str, layout: str
) -> None:
    config, module, shape = KEPT[kind]
    pack = awq_tensors if layout == "awq" else packed_tensors
    tensors, _ = make(config, pack)
    tensors.pop(f"{module}.weight", None)
    values = np.random.default_rng(1).normal(size=shape).astype(np.float16)
    tensors |= pack(module, w4a16.quantize(values, 4, 32, "asymmetric"))
    quantization = AWQ if layout == "awq" else compressed(symmetric=False)
    path = save(tmp_path, tensors, config | {"quantization_config": quantization})
    with pytest.raises(ModelError, match=f"'{module}' is quantized"):
        Checkpoint.open(path)
    assert any(f"'{module}' is quantized" in problem for problem in inspect_artifact(path).problems)


@pytest.mark.parametrize("quantization", [AWQ, compressed(symmetric=False)])
def test_unquantized_tensors_under_a_quantized_config(
    tmp_path: Path, quantization: dict[str, Any]
) -> None:
    tensors, _ = make(LLAMA, awq_tensors, keep=("layers",))
    path = save(tmp_path, tensors, LLAMA | {"quantization_config": quantization})
    with pytest.raises(ModelError, match="do not belong together"):
        Checkpoint.open(path)
    assert inspect_artifact(path).problems


@pytest.mark.parametrize("pack", [awq_tensors, packed_tensors])
def test_quantized_tensors_under_an_unquantized_config(tmp_path: Path, pack: Any) -> None:
    tensors, _ = make(LLAMA, pack)
    path = save(tmp_path, tensors, LLAMA)
    with pytest.raises(ModelError, match=r"holds .* has no quantization_config"):
        Checkpoint.open(path)


def test_an_expert_that_is_there_under_two_names(tmp_path: Path) -> None:
    tensors, _ = make(MIXTRAL, packed_tensors)
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight_scale"
    tensors["model.layers.0.mlp.experts.0.gate_proj.weight_scale"] = tensors[name]
    quantization = {"quantization_config": compressed(symmetric=False)}
    with pytest.raises(ModelError, match="there twice"):
        Checkpoint.open(save(tmp_path, tensors, MIXTRAL | quantization))
    assert load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["quant_config.json", "quantize_config.json"])
def test_configurations_in_a_file_of_their_own(tmp_path: Path, name: str) -> None:
    """AutoAWQ before 0.1.8; AutoGPTQ's, which is GPTQ by name."""
    tensors, expected = make(LLAMA, awq_tensors)
    path = save(tmp_path, tensors, LLAMA)
    early = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (path / name).write_text(json.dumps(early))
    if name == "quant_config.json":
        check(path, expected)
        return
    with pytest.raises(ModelError, match="holds GPTQ"):
        Checkpoint.open(path)
    with pytest.raises(ModelError, match="holds GPTQ"):
        find_model(str(path))
    (path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": AWQ}))
    check(path, expected)  # config.json goes first


def test_an_output_layer_in_autoawqs_layout(tmp_path: Path) -> None:
    untied = LLAMA | {"tie_word_embeddings": False}
    tensors, expected = make(untied, awq_tensors)
    values = tensors.pop("lm_head.weight")
    expected["lm_head"] = w4a16.quantize(values, 4, 32, "asymmetric")
    tensors |= awq_tensors("lm_head", expected["lm_head"])
    check(save(tmp_path, tensors, untied | {"quantization_config": AUTO_ROUND}), expected)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.embed_tokens.weight", np.int8),
        ("model.norm.weight", np.int32),
        ("model.layers.0.mlp.up_proj.weight_packed", np.float16),
        ("model.layers.0.mlp.up_proj.weight_scale", np.int32),
        ("model.layers.1.mlp.gate_proj.weight", np.uint8),
    ],
)
def test_codes_where_values_belong(tmp_path: Path, name: str, dtype: Any) -> None:
    """An embedding that a tool has rounded to bytes has the shape of an unquantized one."""
    tensors, _ = make(LLAMA, packed_tensors, keep=("layers.1.mlp.gate_proj",))
    tensors[name] = (tensors[name] % 100).astype(dtype)
    ignore = ("lm_head", "model.layers.1.mlp.gate_proj")
    quantization = compressed(ignore=ignore, symmetric=False)
    path = save(tmp_path, tensors, LLAMA | {"quantization_config": quantization})
    with pytest.raises(ModelError, match=f"weight '{name}' has dtype"):
        Checkpoint.open(path)
    assert inspect_artifact(path).problems
