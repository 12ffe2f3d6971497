"""Small quantized models in the names and configurations of several tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from awq_edge.model import bit_strings, w4a16
from awq_edge.model.archs import decoder_from_config
from awq_edge.model.layouts import awq_gemm

from .test_reading import WEIGHTS

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
LLAMA = {"model_type": "llama", **SIZES}
MIXTRAL = {
    "model_type": "mixtral", **SIZES, "num_local_experts": 4, "num_experts_per_tok": 2
}  # fmt: skip
QWEN3_MOE = {
    "model_type": "qwen3_moe", **SIZES, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
}  # fmt: skip
QWEN2_VL = {
    "model_type": "qwen2_vl", **SIZES, "vision_config": {"patch_size": 14}, "image_token_id": 5
}  # fmt: skip
FORMAT = w4a16.NumberFormat(4, 32, "asymmetric")
Tensors = dict[str, np.ndarray]
Quantized = dict[str, w4a16.QuantizedWeight]


def compressed(*targets: str, ignore: tuple[str, ...] = (), **weights: Any) -> dict[str, Any]:
    group = {"targets": list(targets or ("Linear",)), "weights": WEIGHTS | weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": list(ignore),
    }


def awq_tensors(linear: str, found: w4a16.QuantizedWeight) -> Tensors:
    return {
        f"{linear}.qweight": awq_gemm.pack_gemm(found.codes),
        f"{linear}.qzeros": awq_gemm.pack_gemm(found.zeros),
        f"{linear}.scales": np.ascontiguousarray(found.scales.T),
    }


def packed_tensors(linear: str, found: w4a16.QuantizedWeight) -> Tensors:
    zeros = bit_strings.pack(np.ascontiguousarray(found.zeros.T), 4).T
    return {
        f"{linear}.weight_packed": bit_strings.pack(found.codes, 4),
        f"{linear}.weight_scale": found.scales,
        f"{linear}.weight_shape": np.array(found.codes.shape, np.int64),
        f"{linear}.weight_zero_point": np.ascontiguousarray(zeros),
    }


def make(
    config: dict[str, Any], pack: Any, keep: tuple[str, ...] = (), group_size: int = 32
) -> tuple[Tensors, Quantized]:
    """Tensors of a checkpoint by the names on disk, and what the quantized ones stand for."""
    rng = np.random.default_rng(0)
    decoder = decoder_from_config(config)
    linears = {
        f"{decoder.layer_prefix(layer)}.{linear.name}"
        for layer in range(decoder.num_layers)
        for linear in decoder.linears(layer)
    }
    tensors: Tensors = {}
    expected: Quantized = {}
    for name, shape in decoder.weight_shapes().items():
        values = rng.normal(size=shape).astype(np.float16)
        linear = name.removesuffix(".weight")
        if linear not in linears or any(part in linear for part in keep):
            tensors[name] = values
            continue
        expected[linear] = w4a16.quantize(values, 4, group_size, "asymmetric")
        tensors |= pack(linear, expected[linear])
    if config["model_type"] == "qwen2_vl":
        tensors["visual.patch_embed.proj.weight"] = np.zeros((4, 4), np.float16)
    return tensors, expected


def save(path: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()},
              path / "model.safetensors")  # fmt: skip
    return path
