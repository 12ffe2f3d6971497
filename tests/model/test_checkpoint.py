"""Checkpoints: every weight is accounted for before any work begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from awq_edge.errors import ModelError
from awq_edge.model import w4a16
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import awq_gemm

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
LINEAR = "model.layers.1.mlp.up_proj"
Tensors = dict[str, np.ndarray]


def dense_tensors() -> Tensors:
    rng = np.random.default_rng(0)
    shapes = decoder_from_config(CONFIG).weight_shapes()
    return {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}


def quantized_tensors(tensors: Tensors, linear: str = LINEAR) -> Tensors:
    quantized = w4a16.quantize(tensors[f"{linear}.weight"], 4, 32, "asymmetric")
    rest = {name: value for name, value in tensors.items() if name != f"{linear}.weight"}
    return rest | {
        f"{linear}.qweight": awq_gemm.pack_gemm(quantized.codes),
        f"{linear}.qzeros": awq_gemm.pack_gemm(quantized.zeros),
        f"{linear}.scales": np.ascontiguousarray(quantized.scales.T),
    }


def write(path: Path, tensors: Tensors, **config: Any) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, path / "model.safetensors")
    return path


def test_quantized_linear_is_read_back(tmp_path: Path) -> None:
    tensors = dense_tensors()
    expected = w4a16.quantize(tensors[f"{LINEAR}.weight"], 4, 32, "asymmetric")
    write(tmp_path, quantized_tensors(tensors), quantization_config=AWQ)
    checkpoint = Checkpoint.open(tmp_path)
    found = checkpoint.quantized(LINEAR)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.zeros, expected.zeros)
    np.testing.assert_array_equal(found.scales, expected.scales)
    assert found.group_size == 32
    assert checkpoint.is_quantized(LINEAR)
    assert not checkpoint.is_quantized("model.layers.0.mlp.up_proj")
    assert checkpoint.quantization is not None
    assert checkpoint.quantization.scheme == "asymmetric"


def test_buffers_and_a_tied_copy_are_no_surprise(tmp_path: Path) -> None:
    tensors = dense_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    Checkpoint.open(write(tmp_path, tensors))


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    tensors = dense_tensors()
    norm = "model.layers.1.input_layernorm.weight"
    with pytest.raises(ModelError, match=rf"'{norm}' of shape \[64\] is missing"):
        Checkpoint.open(write(tmp_path, {k: v for k, v in tensors.items() if k != norm}))
    with pytest.raises(ModelError, match=r"unexpected weight 'model\.layers\.2\.extra\.weight'"):
        Checkpoint.open(
            write(tmp_path, tensors | {"model.layers.2.extra.weight": np.ones(3, np.float16)})
        )
    with pytest.raises(ModelError, match=rf"'{norm}' has shape \[32\], config\.json implies \[64"):
        Checkpoint.open(write(tmp_path, tensors | {norm: np.ones(32, np.float16)}))
    with pytest.raises(ModelError, match=rf"'{LINEAR}\.scales' has shape \[1, 96\]"):
        broken = quantized_tensors(tensors)
        broken[f"{LINEAR}.scales"] = broken[f"{LINEAR}.scales"][:1]
        Checkpoint.open(write(tmp_path, broken, quantization_config=AWQ))


def test_scales_must_be_finite(tmp_path: Path) -> None:
    tensors = quantized_tensors(dense_tensors())
    tensors[f"{LINEAR}.scales"][0, 0] = np.nan
    checkpoint = Checkpoint.open(write(tmp_path, tensors, quantization_config=AWQ))
    with pytest.raises(ModelError, match=rf"the scales of '{LINEAR}' have NaN or inf"):
        checkpoint.quantized(LINEAR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quant_method": "gptq"},
            "holds GPTQ, 4 bits .quant_method 'gptq'., which is not read here; give the .* model "
            "that it was made from; supported: .* awq .version gemm. and compressed-tensors",
        ),
        ({"version": "gemv"}, "holds AWQ in version gemv"),
        ({"bits": 3}, "bits 3; supported: 4"),
        ({"group_size": 0}, "group_size 0; supported: a positive number, or -1"),
    ],
)
def test_other_formats_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    tensors = quantized_tensors(dense_tensors())
    with pytest.raises(ModelError, match=message):
        Checkpoint.open(write(tmp_path, tensors, quantization_config=AWQ | change))
