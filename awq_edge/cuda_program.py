"""model.json of a bundle for runtime `cuda`: the decoder as the kernels execute it.

    embedding ─ layer 0 ─ ... ─ layer n-1 ─ final_norm ─ lm_head

    layer: attention_norm ─ qkv ─ attention ─ attention_out ─(+)─ mlp_norm ─ gate_up ─ mlp_out ─(+)

Every tensor is named; `tensors` says where it lies in the weight file. docs/cuda-backend.md
describes the file.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from awq_edge.errors import ArtifactError
from awq_edge.input_files import parse_model

Dtype = Literal["float16", "bfloat16", "float32", "int32"]
ITEM_BYTES: dict[Dtype, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorPlace(_Part):
    """A tensor of the weight file: C order, little endian, `offset` bytes from its beginning."""

    dtype: Dtype
    shape: tuple[int, ...]
    offset: Annotated[int, Field(ge=0)]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class QuantizedLinear(_Part):
    """A linear of awq_edge_w4a16_linear. The strings are names of tensors, in the layout of the
    kernels (`awq_edge.plugin.packing`). zeros: None where all are 2**(bits-1). gate_up: its rows
    are those of a gate and an up projection, woven, and its outputs silu(gate) * up."""

    kind: Literal["w4a16"] = "w4a16"
    bits: int
    group_size: int
    in_features: int
    out_features: int
    gate_up: bool = False
    qweight: str
    scales: str
    zeros: str | None = None
    bias: str | None = None


class DenseLinear(_Part):
    """An unquantized linear: weight [out, in] and bias [out], names of tensors in the type of the
    activations."""

    kind: Literal["dense"] = "dense"
    in_features: int
    out_features: int
    weight: str
    bias: str | None = None


Linear = Annotated[QuantizedLinear | DenseLinear, Field(discriminator="kind")]


class Layer(_Part):
    """One decoder block. Norms are names of tensors.

    qkv: one linear of all three, or three where their formats differ. gate_up: one linear of both,
    quantized with `gate_up` set or dense; or two. window: positions that a query sees, itself
    included; None for all.
    """

    attention_norm: str
    qkv: Annotated[tuple[Linear, ...], Field(min_length=1, max_length=3)]
    q_norm: str | None = None
    k_norm: str | None = None
    window: int | None = None
    attention_out: Linear
    mlp_norm: str
    gate_up: Annotated[tuple[Linear, ...], Field(min_length=1, max_length=2)]
    mlp_out: Linear


class CudaProgram(_Part):
    """A decoder for the cuda runtime.

    layout_version: of the quantized tensors. context: positions of the rotary tables. cosine, sine:
    float32 [context, rotary_size / 2]. embedding: [vocab, hidden]. attention_scale: multiplies
    q k^T. The strings are names of tensors.
    """

    format: Literal["awq-edge-cuda-program"] = "awq-edge-cuda-program"
    format_version: Literal[1] = 1
    layout_version: int
    activation_dtype: Literal["float16", "bfloat16"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    rotary_size: int
    context: int
    norm_eps: float
    attention_scale: float
    embedding: str
    cosine: str
    sine: str
    layers: tuple[Layer, ...]
    final_norm: str
    lm_head: Linear
    tensors: dict[str, TensorPlace]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight file."""
        return max(place.offset + place.nbytes for place in self.tensors.values())


def read_program(data: bytes, source: str) -> CudaProgram:
    """The program of a model.json. source: its path, for the error.

    Raises ArtifactError when it is not one, or one of another version.
    """
    return parse_model(
        CudaProgram,
        data,
        source,
        what="a program of this version",
        fix="export the bundle again",
        error=ArtifactError,
    )
