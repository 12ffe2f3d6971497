"""Programs of the cuda runtime with random weights, made where they are needed: no file, no model.

`random_program` says what the tensors are, `fill_random` makes them up on a GPU in a second (for
benchmarks), `fill_quantized` quantizes and packs random matrices on the host (for tests).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from awq_edge.exporter.emit_cuda import emit_cuda
from awq_edge.exporter.writer import WeightPlan
from awq_edge.kernels.packing import pack, pack_gate_up
from awq_edge.model.archs import Decoder, Rope, decoder_from_config
from awq_edge.model.rope import rope_tables
from awq_edge.model.w4a16 import NumberFormat, Scheme, quantize
from awq_edge.program.build import build_program
from awq_edge.program.formats import Formats
from awq_edge.program.program import Quantized
from awq_edge.program.sources import PlannedSources
from awq_edge.program.storage import Storage, cuda_form
from awq_edge.recipe.recipes import load_recipe
from awq_edge.runtime.backends.cuda.program import Call, CudaProgram

LM_HEAD_GROUP_SIZE = 32
_TORCH = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int32": torch.int32,
}
_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; context: positions of its rotary tables."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    context: int


LLAMA_2_7B = Shape(32000, 4096, 11008, 32, 32, 32, 128, 4608)


@dataclass(frozen=True)
class Variant:
    """What differs between models of one shape. lm_head_bits 16: dense. merged: q, k, v in one
    linear, gate and up in one; otherwise k and up have 8 bits. dense: nothing is quantized."""

    bits: int = 4
    group_size: int = 128
    scheme: Scheme = "asymmetric"
    lm_head_bits: int = 8
    merged: bool = True
    dense: bool = False
    bias: bool = False
    head_norms: bool = False
    window: int | None = None
    dtype: Literal["float16", "bfloat16"] = "float16"


def random_program(shape: Shape, variant: Variant) -> CudaProgram:
    """A llama-like program of a shape."""
    recipe = load_recipe("cuda").overridden({"runtime.activation_dtype": variant.dtype})
    program = build_program(_decoder(shape, variant), _formats(variant))
    storage = Storage(cuda_form(recipe, program), PlannedSources())
    emitted = emit_cuda(program, storage, shape.context)
    return emitted.placed(WeightPlan.of(emitted.weights).offsets)


def tensors_of(program: CudaProgram, block: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a program by name, as views of its weight file (uint8)."""
    return {
        name: block[place.offset : place.offset + place.nbytes]
        .view(_TORCH[place.dtype])
        .view(place.shape)
        for name, place in program.tensors.items()
    }


def fill_random(program: CudaProgram, block: torch.Tensor) -> dict[str, torch.Tensor]:
    """Random weights on the block's device, for which activations stay of order one.

    block: uint8 [program.weight_bytes]. Returns the tensors by name, views of it. Only for sizes in
    whole tiles and blocks: what pads others would be random too.
    """
    tensors = tensors_of(program, block)
    for call in linears(program):
        inputs = {role: tensors.get(name) for role, name in call.inputs.items()}
        weight = inputs.get("weight")
        if weight is not None:
            weight.normal_(0.0, weight.shape[1] ** -0.5)
            continue
        names = ("in_features", "out_features", "bits")
        k, n, bits = (int(call.attributes[name]) for name in names)
        assert k % 128 == 0 and n % 16 == 0
        qweight, scales, zeros = (inputs.get(name) for name in ("qweight", "scales", "zeros"))
        assert qweight is not None and scales is not None
        qweight.view(torch.uint8).random_(0, 256)
        deviation = 2**bits / math.sqrt(12)  # of uniform codes
        scales.fill_(k**-0.5 / deviation)
        if zeros is not None:  # 7 and 8 in turn: codes average 7.5
            middle = 2 ** (bits - 1)
            low, high = ((m if bits == 8 else m | m << 4) for m in (middle - 1, middle))
            octets = zeros.view(torch.uint8)
            octets[..., 0::2], octets[..., 1::2] = low, high
    _fill_rest(program, tensors)
    return tensors


def fill_quantized(
    program: CudaProgram, block: torch.Tensor, scheme: Scheme, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random matrices, rounded and packed, in a block on the host. See `fill_random`."""
    tensors, rng = tensors_of(program, block), np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)

    for call in linears(program):
        inputs, values = call.inputs, call.attributes
        if "weight" in inputs:
            weight = tensors[inputs["weight"]]
            weight.copy_(torch.from_numpy(matrix(*weight.shape)))
            continue
        rows, columns = int(values["out_features"]), int(values["in_features"])
        woven = str(values["epilogue"]).endswith("_mul")
        parts = [
            quantize(
                matrix(rows // (2 if woven else 1), columns),
                int(values["bits"]),
                int(values["group_size"]),
                scheme if "zeros" in inputs else "symmetric",
            )
            for _ in range(2 if woven else 1)
        ]
        packed = pack_gate_up(*parts) if woven else pack(*parts)
        tensors[inputs["qweight"]].copy_(torch.from_numpy(packed.qweight))
        tensors[inputs["scales"]].copy_(torch.from_numpy(packed.scales))
        if "zeros" in inputs:
            assert packed.zeros is not None
            tensors[inputs["zeros"]].copy_(torch.from_numpy(packed.zeros))
    torch.manual_seed(seed)
    _fill_rest(program, tensors)
    return tensors


def linears(program: CudaProgram) -> Iterator[Call]:
    """Every linear, in the order of execution."""
    yield from (call for call in program.calls if call.operation.endswith("_linear"))


def row_tensors(program: CudaProgram) -> list[str]:
    """Tensors of which a step reads one row: the embedding and the rotary tables."""
    names = {
        name
        for call in program.calls
        for role, name in call.inputs.items()
        if role in ("table", "cosine", "sine")
    }
    return sorted(names)


def _fill_rest(program: CudaProgram, tensors: dict[str, torch.Tensor]) -> None:
    """Embedding, norms, biases and rotary tables."""
    for call in program.calls:
        for role, name in call.inputs.items():
            if role == "table":
                tensors[name].normal_(0.0, 1.0)
            elif role in ("q_norm", "k_norm") or (role == "weight" and "norm" in call.operation):
                tensors[name].uniform_(0.5, 1.5)
            elif role == "bias":
                tensors[name].uniform_(-0.5, 0.5)
            elif role in ("cosine", "sine"):
                rope = Rope("default", _ROPE_THETA, 2 * tensors[name].shape[1])
                table = rope_tables(rope, program.context)[role == "sine"]
                tensors[name].copy_(torch.from_numpy(table))


def _decoder(shape: Shape, variant: Variant) -> Decoder:
    """Of qwen3, which has norms of heads, or of llama."""
    decoder = decoder_from_config(
        {
            "model_type": "qwen3" if variant.head_norms else "llama",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_size,
            "max_position_embeddings": shape.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": _ROPE_THETA,
            "tie_word_embeddings": False,
        }
    )
    bias = variant.bias
    return replace(
        decoder,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        windows=(variant.window,) * shape.num_layers,
    )


def _formats(variant: Variant) -> Formats:
    zeros = variant.scheme == "asymmetric"
    main = Quantized(NumberFormat(variant.bits, variant.group_size, variant.scheme), zeros)
    other = Quantized(NumberFormat(8, LM_HEAD_GROUP_SIZE, "symmetric"), has_zeros=False)

    def of(name: str, out_features: int, in_features: int) -> Quantized | None:
        if not variant.merged and name.endswith(("k_proj", "up_proj")):
            return other
        return None if variant.dense else main

    head = None
    if variant.lm_head_bits != 16:
        scheme: Scheme = "symmetric" if variant.lm_head_bits == 8 else "asymmetric"
        number_format = NumberFormat(variant.lm_head_bits, LM_HEAD_GROUP_SIZE, scheme)
        head = Quantized(number_format, scheme == "asymmetric")
    return Formats(main.number_format, of, head, stored_lm_head=True)
