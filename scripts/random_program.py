"""Programs of the cuda runtime with random weights, made where they are needed: no file, no model.

`random_program` says what the tensors are, `fill_random` makes them up on a GPU in a second (for
benchmarks), `fill_quantized` quantizes and packs random matrices on the host (for tests).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from awq_edge.kernels.interface import LAYOUT_VERSION
from awq_edge.kernels.packing import pack, pack_gate_up
from awq_edge.model.archs.base import Rope
from awq_edge.model.rope import rope_tables
from awq_edge.model.w4a16 import Scheme, quantize
from awq_edge.runtime.backends.cuda.program import (
    ITEM_BYTES,
    CudaProgram,
    DenseLinear,
    Dtype,
    Layer,
    Linear,
    QuantizedLinear,
    TensorPlace,
)
from awq_edge.runtime.backends.cuda.weights import tensors_of

ALIGNMENT = 4096
LM_HEAD_GROUP_SIZE = 32


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
    linear, gate and up in one. dense: nothing is quantized."""

    bits: int = 4
    group_size: int = 128
    scheme: Scheme = "asymmetric"
    lm_head_bits: int = 8
    merged: bool = True
    dense: bool = False
    bias: bool = False
    head_norms: bool = False
    window: int | None = None
    dtype: Dtype = "float16"


def random_program(shape: Shape, variant: Variant) -> CudaProgram:
    """A llama-like program of a shape."""
    return _Builder(shape, variant).build()


def fill_random(program: CudaProgram, block: torch.Tensor) -> dict[str, torch.Tensor]:
    """Random weights on the block's device, for which activations stay of order one.

    block: uint8 [program.weight_bytes]. Returns the tensors by name, views of it. Only for sizes in
    whole tiles and blocks: what pads others would be random too.
    """
    tensors = tensors_of(block, program)
    for linear in linears(program):
        if isinstance(linear, DenseLinear):
            tensors[linear.weight].normal_(0.0, linear.in_features**-0.5)
            continue
        assert linear.in_features % 128 == 0 and linear.out_features % 16 == 0
        tensors[linear.qweight].view(torch.uint8).random_(0, 256)
        deviation = 2**linear.bits / math.sqrt(12)  # of uniform codes
        tensors[linear.scales].fill_(linear.in_features**-0.5 / deviation)
        if linear.zeros is not None:  # 7 and 8 in turn: codes average 7.5
            middle = 2 ** (linear.bits - 1)
            low, high = ((m if linear.bits == 8 else m | m << 4) for m in (middle - 1, middle))
            octets = tensors[linear.zeros].view(torch.uint8)
            octets[..., 0::2], octets[..., 1::2] = low, high
    _fill_rest(program, tensors)
    return tensors


def fill_quantized(
    program: CudaProgram, block: torch.Tensor, scheme: Scheme, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random matrices, rounded and packed, in a block on the host. See `fill_random`."""
    tensors, rng = tensors_of(block, program), np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)

    for linear in linears(program):
        if isinstance(linear, DenseLinear):
            values = torch.from_numpy(matrix(linear.out_features, linear.in_features))
            tensors[linear.weight].copy_(values)
            continue
        count = 2 if linear.gate_up else 1
        how = scheme if linear.zeros is not None else "symmetric"
        parts = [
            quantize(
                matrix(linear.out_features // count, linear.in_features),
                linear.bits,
                linear.group_size,
                how,
            )
            for _ in range(count)
        ]
        packed = pack_gate_up(*parts) if linear.gate_up else pack(*parts)
        tensors[linear.qweight].copy_(torch.from_numpy(packed.qweight))
        tensors[linear.scales].copy_(torch.from_numpy(packed.scales))
        if linear.zeros is not None:
            assert packed.zeros is not None
            tensors[linear.zeros].copy_(torch.from_numpy(packed.zeros))
    torch.manual_seed(seed)
    _fill_rest(program, tensors)
    return tensors


def linears(program: CudaProgram) -> Iterator[Linear]:
    """Every linear, in the order of execution."""
    for layer in program.layers:
        yield from (*layer.qkv, layer.attention_out, *layer.gate_up, layer.mlp_out)
    yield program.lm_head


def _fill_rest(program: CudaProgram, tensors: dict[str, torch.Tensor]) -> None:
    """Embedding, norms, biases and rotary tables."""
    tensors[program.embedding].normal_(0.0, 1.0)
    for name, tensor in tensors.items():
        if name.endswith("norm"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(".bias"):
            tensor.uniform_(-0.5, 0.5)
    rope = Rope("default", 10000.0, program.rotary_size)
    for name, table in zip(
        (program.cosine, program.sine), rope_tables(rope, program.context), strict=True
    ):
        tensors[name].copy_(torch.from_numpy(table))


class _Builder:
    def __init__(self, shape: Shape, variant: Variant) -> None:
        self._shape = shape
        self._variant = variant
        self._tensors: dict[str, TensorPlace] = {}
        self._end = 0

    def build(self) -> CudaProgram:
        shape, variant = self._shape, self._variant
        table = (shape.context, shape.head_size // 2)
        return CudaProgram(
            layout_version=LAYOUT_VERSION,
            activation_dtype="bfloat16" if variant.dtype == "bfloat16" else "float16",
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_size=shape.head_size,
            rotary_size=shape.head_size,
            context=shape.context,
            norm_eps=1e-5,
            attention_scale=shape.head_size**-0.5,
            embedding=self._tensor("embedding", (shape.vocab_size, shape.hidden_size)),
            cosine=self._tensor("cosine", table, "float32"),
            sine=self._tensor("sine", table, "float32"),
            layers=tuple(self._layer(f"layers.{index}") for index in range(shape.num_layers)),
            final_norm=self._tensor("norm", (shape.hidden_size,)),
            lm_head=self._lm_head(),
            tensors=self._tensors,
        )

    def _layer(self, name: str) -> Layer:
        shape, variant = self._shape, self._variant
        hidden, inner = shape.hidden_size, shape.intermediate_size
        q_size, kv_size = (n * shape.head_size for n in (shape.num_heads, shape.num_kv_heads))

        def head_norm(which: str) -> str | None:
            wanted = variant.head_norms
            return self._tensor(f"{name}.{which}_norm", (shape.head_size,)) if wanted else None

        parts = {"q": q_size, "k": kv_size, "v": kv_size}
        if variant.merged:
            parts = {"qkv": sum(parts.values())}
            gate_up = (self._linear(f"{name}.gate_up", hidden, 2 * inner, gate_up=True),)
        else:
            gate_up = tuple(
                self._linear(f"{name}.{part}", hidden, inner) for part in ("gate", "up")
            )
        return Layer(
            attention_norm=self._tensor(f"{name}.attention_norm", (hidden,)),
            qkv=tuple(self._linear(f"{name}.{part}", hidden, n) for part, n in parts.items()),
            q_norm=head_norm("q"),
            k_norm=head_norm("k"),
            window=variant.window,
            attention_out=self._linear(f"{name}.attention_out", q_size, hidden),
            mlp_norm=self._tensor(f"{name}.mlp_norm", (hidden,)),
            gate_up=gate_up,
            mlp_out=self._linear(f"{name}.mlp_out", inner, hidden),
        )

    def _lm_head(self) -> Linear:
        sizes = ("lm_head", self._shape.hidden_size, self._shape.vocab_size)
        bits = self._variant.lm_head_bits
        if bits == 16:
            return self._dense(*sizes, bias=False)
        return self._quantized(*sizes, bits, LM_HEAD_GROUP_SIZE, zeros=bits != 8, bias=False)

    def _linear(self, name: str, k: int, n: int, *, gate_up: bool = False) -> Linear:
        variant = self._variant
        if variant.dense:
            return self._dense(name, k, n, bias=variant.bias)
        zeros = variant.scheme == "asymmetric"
        sizes = (variant.bits, variant.group_size)
        return self._quantized(name, k, n, *sizes, zeros=zeros, bias=variant.bias, gate_up=gate_up)

    def _quantized(
        self,
        name: str,
        k: int,
        n: int,
        bits: int,
        group_size: int,
        *,
        zeros: bool,
        bias: bool,
        gate_up: bool = False,
    ) -> QuantizedLinear:
        tiles = -(-(n // 2) // 8) if gate_up else -(-n // 16)
        blocks = -(-k // 128)
        groups = blocks * 128 // group_size
        words = (tiles, groups, 4 if bits == 8 else 2)
        return QuantizedLinear(
            bits=bits,
            group_size=group_size,
            in_features=k,
            out_features=n,
            gate_up=gate_up,
            qweight=self._tensor(f"{name}.qweight", (tiles, blocks, 64 * bits), "int32"),
            scales=self._tensor(f"{name}.scales", (tiles, groups, 8, 2), "float16"),
            zeros=self._tensor(f"{name}.zeros", words, "int32") if zeros else None,
            bias=self._tensor(f"{name}.bias", (n,)) if bias else None,
        )

    def _dense(self, name: str, k: int, n: int, *, bias: bool) -> DenseLinear:
        return DenseLinear(
            in_features=k,
            out_features=n,
            weight=self._tensor(f"{name}.weight", (n, k)),
            bias=self._tensor(f"{name}.bias", (n,)) if bias else None,
        )

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: Dtype | None = None) -> str:
        kind = self._variant.dtype if dtype is None else dtype
        place = TensorPlace(dtype=kind, shape=shape, offset=-(-self._end // ALIGNMENT) * ALIGNMENT)
        self._end = place.offset + math.prod(shape) * ITEM_BYTES[kind]
        self._tensors[name] = place
        return name
