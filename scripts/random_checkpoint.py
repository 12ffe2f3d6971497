"""Write a model or checkpoint of a known model's shape with random weights, for benchmarks.

    python scripts/random_checkpoint.py --shape tinyllama-1.1b --out DIR
    python scripts/random_checkpoint.py --shape llama-2-70b --layers 2 --unquantized --out DIR

AutoAWQ gemm layout, 4 bits, groups of 128, embedding and lm_head float16; or all float16. Speed and
memory do not depend on what the weights are, and nothing has to be downloaded. Written tensor by
tensor.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from awq_edge.model.archs import Decoder, decoder_from_config

GROUP_SIZE = 128
SHAPES: dict[str, dict[str, Any]] = {
    # config.json of TinyLlama/TinyLlama-1.1B-Chat-v1.0
    "tinyllama-1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    # config.json of meta-llama/Llama-2-7b-hf
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    # config.json of meta-llama/Llama-2-70b-hf
    "llama-2-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
}
COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
    "quantization_config": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "zero_point": True,
        "version": "gemm",
    },
}
# Safetensors dtype and shape by name.
Tensors = dict[str, tuple[str, tuple[int, ...]]]
_DRAWN = (1 << 24) + 1  # odd, so that rows do not repeat
_DTYPES = {"I32": np.dtype("<i4"), "F16": np.dtype("<f2")}


def write_random_checkpoint(shape: str, directory: Path, seed: int = 0) -> int:
    """A quantized checkpoint: config.json and model.safetensors. Returns the bytes of the
    weights."""
    config = {**COMMON, **SHAPES[shape]}
    return _write(config, _quantized_tensors(decoder_from_config(config)), directory, seed)


def write_random_model(shape: str, directory: Path, layers: int, seed: int = 0) -> int:
    """An unquantized model of `layers` blocks, float16. Returns the bytes of the weights."""
    config = {**COMMON, **SHAPES[shape], "num_hidden_layers": layers}
    del config["quantization_config"]
    shapes = decoder_from_config(config).weight_shapes()
    return _write(config, {name: ("F16", dims) for name, dims in shapes.items()}, directory, seed)


def _write(config: dict[str, Any], tensors: Tensors, directory: Path, seed: int) -> int:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, dims) in tensors.items():
        begin, end = end, end + math.prod(dims) * _DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, dims) in tensors.items():
            file.write(_random(rng, name, dtype, dims).tobytes())
    return end


def _quantized_tensors(decoder: Decoder) -> Tensors:
    """Names of the quantized checkpoint, their safetensors dtype and shape."""
    tensors: Tensors = {}
    for name, dims in decoder.weight_shapes().items():
        linear = name.removesuffix(".weight")
        if len(dims) == 1 or not name.startswith(decoder.architecture.layers + "."):
            tensors[name] = ("F16", dims)
            continue
        out_features, in_features = dims
        groups = in_features // GROUP_SIZE
        tensors[f"{linear}.qweight"] = ("I32", (in_features, out_features // 8))
        tensors[f"{linear}.qzeros"] = ("I32", (groups, out_features // 8))
        tensors[f"{linear}.scales"] = ("F16", (groups, out_features))
    return tensors


def _random(
    rng: np.random.Generator, name: str, dtype: str, dims: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Values for which activations stay of order one."""
    if dtype == "I32":
        # Codes average 7.5: zero points of 7 and 8 in turn, so that weights have no bias. With one,
        # keys grow large, and attention, sharp beyond all real models, computes with denormals.
        if name.endswith("qzeros"):
            zeros = np.full(dims, 0x88888888, dtype="<u4")
            zeros[0::2] = 0x77777777
            return zeros.view("<i4")
        return rng.integers(-(2**31), 2**31, dims, dtype=np.int32)
    if name.endswith(".scales"):
        deviation = 1 / math.sqrt(dims[0] * GROUP_SIZE)
        return np.full(dims, deviation / 4.6, dtype="<f2")  # codes deviate by 4.6 from 8
    if len(dims) == 1:
        return np.ones(dims, dtype="<f2")
    # A part of the values, repeated: drawing every one of a 70 B block takes longer than using it.
    count = math.prod(dims)
    part = rng.standard_normal(min(count, _DRAWN), dtype=np.float32) / math.sqrt(dims[1])
    return np.resize(part.astype("<f2"), count).reshape(dims)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="directory, made here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unquantized", action="store_true", help="all float16")
    parser.add_argument("--layers", type=int, help="of an unquantized model; default: the shape's")
    arguments = parser.parse_args()
    if arguments.unquantized:
        layers = arguments.layers or SHAPES[arguments.shape]["num_hidden_layers"]
        size = write_random_model(arguments.shape, arguments.out, layers, arguments.seed)
    else:
        size = write_random_checkpoint(arguments.shape, arguments.out, arguments.seed)
    print(f"{arguments.out}: {size / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
