"""model.json of a bundle for runtime `cuda`: the decoder as the kernels execute it.

    embedding ─ layer 0 ─ ... ─ layer n-1 ─ final_norm ─ lm_head

    layer: attention_norm ─ qkv ─ attention ─ attention_out ─(+)─ mlp_norm ─ gate_up ─ mlp_out ─(+)

Every tensor is named; `tensors` says where it lies in the weight file. docs/cuda-backend.md
describes the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from awq_edge.artifacts.config_keys import (
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WINDOW,
    Bits,
    ByteCount,
    Channels,
    Heads,
    HeadSize,
    Positions,
    TensorSize,
)
from awq_edge.artifacts.directories import BundleManifest
from awq_edge.artifacts.input_files import show
from awq_edge.artifacts.schema import Manifest, Record
from awq_edge.errors import ArtifactError

Dtype = Literal["float16", "bfloat16", "float32", "int32"]
# Rows of a linear: those of an output layer are tokens.
Features = Annotated[int, Field(ge=1, le=MAX_VOCABULARY)]
ITEM_BYTES: dict[Dtype, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4}


class TensorPlace(Record):
    """A tensor of the weight file: C order, little endian, `offset` bytes from its beginning."""

    dtype: Dtype
    shape: Annotated[tuple[TensorSize, ...], Field(max_length=8)]
    offset: ByteCount

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class QuantizedLinear(Record):
    """A linear of awq_edge_w4a16_linear. Strings name tensors in the layout of the kernels
    (`awq_edge.kernels.packing`)."""

    kind: Literal["w4a16"] = "w4a16"
    bits: Bits
    group_size: Channels
    in_features: Channels
    out_features: Features
    # the rows of a gate and an up projection alternate, and the outputs are silu(gate) * up
    gate_up: bool = False
    qweight: str
    scales: str
    zeros: str | None = None  # None where all are 2**(bits-1)
    bias: str | None = None

    def tensor_names(self) -> list[str]:
        """The names of the linear's tensors."""
        names = (self.qweight, self.scales, self.zeros, self.bias)
        return [name for name in names if name is not None]


class DenseLinear(Record):
    """An unquantized linear: weight [out, in] and bias [out], names of tensors in the type of the
    activations."""

    kind: Literal["dense"] = "dense"
    in_features: Channels
    out_features: Features
    weight: str
    bias: str | None = None

    def tensor_names(self) -> list[str]:
        """The names of the linear's tensors."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


Linear = Annotated[QuantizedLinear | DenseLinear, Field(discriminator="kind")]


class Layer(Record):
    """One decoder block. Norms are names of tensors.

    qkv: one linear of all three, or three where their formats differ.
    gate_up: one linear of both, quantized with `gate_up` set or dense; or two.
    window: positions that a query sees, itself included; None for all.
    """

    attention_norm: str
    qkv: Annotated[tuple[Linear, ...], Field(min_length=1, max_length=3)]
    q_norm: str | None = None
    k_norm: str | None = None
    window: Annotated[int, Field(ge=1, le=MAX_WINDOW)] | None = None
    attention_out: Linear
    mlp_norm: str
    gate_up: Annotated[tuple[Linear, ...], Field(min_length=1, max_length=2)]
    mlp_out: Linear


class CudaProgram(Manifest):
    """A decoder for the cuda runtime. Strings are names of tensors."""

    noun: ClassVar[str] = "a program of this version"
    remedy: ClassVar[str] = "export the bundle again"

    format: Literal["awq-edge-cuda-program"] = "awq-edge-cuda-program"
    format_version: Literal[1] = 1
    layout_version: int  # of the quantized tensors
    activation_dtype: Literal["float16", "bfloat16"]
    vocab_size: Annotated[int, Field(ge=1, le=MAX_VOCABULARY)]
    hidden_size: Channels
    intermediate_size: Channels
    num_heads: Heads
    num_kv_heads: Heads
    head_size: HeadSize
    rotary_size: HeadSize
    context: Positions  # positions of the rotary tables
    norm_eps: Annotated[float, Field(gt=0, lt=1)]
    attention_scale: Annotated[float, Field(gt=0, lt=1e9)]  # multiplies q k^T
    embedding: str  # [vocab, hidden]
    # cosine, sine: float32 [context, rotary_size / 2]
    cosine: str
    sine: str
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    final_norm: str
    lm_head: Linear
    tensors: dict[str, TensorPlace]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight file."""
        return max((place.offset + place.nbytes for place in self.tensors.values()), default=0)

    def check_sizes(self, source: str, manifest: BundleManifest) -> None:
        """Raise ArtifactError where the program's sizes differ from the manifest's, or it names a
        tensor that `tensors` lacks.

        source: its path.
        """
        fix = "export the bundle again"
        for name in ("vocab_size", "hidden_size", "num_heads", "num_kv_heads", "head_size"):
            ours, theirs = getattr(self, name), getattr(manifest, name)
            if ours != theirs:
                raise ArtifactError(
                    f"{source}: {name} is {ours}, that of the manifest {theirs}; {fix}"
                )
        if len(self.layers) != manifest.num_layers or self.context < manifest.context:
            raise ArtifactError(
                f"{source} has {len(self.layers)} layers and {self.context} positions, the "
                f"manifest {manifest.num_layers} and {manifest.context}; {fix}"
            )
        for name in self._tensor_names():
            if name not in self.tensors:
                raise ArtifactError(f"{source}: tensor {show(name)} is not in 'tensors'; {fix}")

    def _tensor_names(self) -> Iterator[str]:
        yield from (self.embedding, self.cosine, self.sine, self.final_norm)
        linears = [self.lm_head]
        for layer in self.layers:
            norms = (layer.attention_norm, layer.q_norm, layer.k_norm, layer.mlp_norm)
            yield from (norm for norm in norms if norm is not None)
            linears += [*layer.qkv, layer.attention_out, *layer.gate_up, layer.mlp_out]
        for linear in linears:
            yield from linear.tensor_names()
