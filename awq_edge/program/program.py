"""The decoder program: what a model computes, in order, over weights that are named and not read.

    embedding ─ block 0 ─ ... ─ block n-1 ─ output

A block is a sequence of sublayers, each of which adds to the hidden state what its mixer computes:

    x ─┬─ (norm) ─ mixer ─ (post_norm) ─ (times residual_scale) ─ Add ─ (end_norm)
       └────────────────────────────────────────────────────────┘

Numbers that a runtime may fold into a weight or apply by itself are data: the offset and the factor
of a norm, the scales of embedding, residual sums and output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from awq_edge.model.archs.base import Rope
from awq_edge.model.w4a16 import NumberFormat

# Where a weight counts in the manifest's part_bytes.
Part = Literal["embedding", "blocks", "lm_head", "tables"]
# The tables of layers that see all positions, and of those with a window where they differ.
RotationName = Literal["rope", "rope.local"]


@dataclass(frozen=True)
class Quantized:
    """The storage of a linear. has_zeros: zero points are stored; all are the middle code where
    they are not."""

    number_format: NumberFormat
    has_zeros: bool


@dataclass(frozen=True)
class Tensor:
    """An unquantized tensor. name: of the checkpoint."""

    name: str
    shape: tuple[int, ...]
    part: Part


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis, statistics in float32.

    kind: rms, x / rms(x) * w; or layer, LayerNorm with a bias. name: of the module.
    offset, factor: (offset + weight) * factor is what multiplies.
    """

    kind: Literal["rms", "layer"]
    name: str
    weight: Tensor
    bias: Tensor | None
    eps: float
    offset: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True)
class Linear:
    """y = x W^T (+ b). name: of the module.

    source: the tensor W [out_features, in_features] of the unquantized checkpoint; of an output
    layer that shares the embedding's, the embedding's.
    stored: None for unquantized.
    is_rounded: the checkpoint has it unquantized, and an export rounds it.
    read_share: the share of tokens whose computation reads it; below 1 in experts.
    """

    name: str
    source: str
    in_features: int
    out_features: int
    bias: Tensor | None
    part: Part
    stored: Quantized | None = None
    is_rounded: bool = False
    read_share: float = 1.0


@dataclass(frozen=True)
class LinearGroup:
    """Linears that read one input: q, k and v; gate and up.

    sizes: channels of the outputs, one a linear; several of one linear where the checkpoint has
    them fused.
    """

    linears: tuple[Linear, ...]
    sizes: tuple[int, ...]

    @property
    def is_fused(self) -> bool:
        """True where one linear has the rows of all outputs."""
        return len(self.linears) < len(self.sizes)

    @property
    def in_features(self) -> int:
        return self.linears[0].in_features

    def merged(self) -> tuple[tuple[int, ...], ...]:
        """Places of linears that may be stored as one, one below the other: of the same bits,
        groups, zero points and biases. In the order of the first of each."""
        parts: dict[object, list[int]] = {}
        for place, linear in enumerate(self.linears):
            parts.setdefault(_kind(linear), []).append(place)
        return tuple(map(tuple, parts.values()))


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention over a KV cache, q and k normed by head where there are norms,
    and rotated where there is a rotation.

    name: of the module. scale: multiplies q k^T. soft_cap: c of c * tanh(score / c), or None.
    window: positions that a query sees, itself included; None: all.
    """

    name: str
    qkv: LinearGroup
    out: Linear
    num_heads: int
    num_kv_heads: int
    head_size: int
    q_norm: Norm | None
    k_norm: Norm | None
    rotation: RotationName | None
    scale: float
    soft_cap: float | None
    window: int | None


@dataclass(frozen=True)
class Mlp:
    """out(activation(gate) * up), or without a gate out(activation(first)). name: of the module.

    inputs: gate and up, or the first linear. activation: as config.json names it: silu, relu, gelu,
    gelu_pytorch_tanh.
    """

    name: str
    inputs: LinearGroup
    activation: str
    out: Linear

    @property
    def is_gated(self) -> bool:
        return len(self.inputs.sizes) == 2

    @property
    def inner_size(self) -> int:
        return self.inputs.sizes[0]


@dataclass(frozen=True)
class Experts:
    """A router sends each token to `per_token` of the experts, whose outputs are summed by their
    shares: a softmax over the router's scores of all experts in float32, of which the largest are
    kept.

    name: of the module. is_normalised: the shares that are kept are divided by their sum.
    """

    name: str
    router: Linear
    experts: tuple[Mlp, ...]
    per_token: int
    is_normalised: bool


Mixer = Attention | Mlp | Experts


@dataclass(frozen=True)
class Sublayer:
    """One residual sum; see the module. name: "model.layers.0.attention", of the sum."""

    name: str
    mixer: Mixer
    norm: Norm | None
    post_norm: Norm | None
    end_norm: Norm | None
    residual_scale: float = 1.0


@dataclass(frozen=True)
class Block:
    """One layer: attention, then an MLP or experts."""

    name: str
    sublayers: tuple[Sublayer, ...]

    @property
    def attention(self) -> Attention:
        return next(each.mixer for each in self.sublayers if isinstance(each.mixer, Attention))


@dataclass(frozen=True)
class Embedding:
    """From token ids to the first block's input.

    scale: multiplies the rows of the table. projection: from the table's channels to the blocks'.
    positions: the table of learned positions; its row position + position_offset is added.
    exact: a float32 table stays so in float32.
    """

    table: Tensor
    scale: float
    projection: Linear | None
    positions: Tensor | None
    position_offset: int
    exact: bool


@dataclass(frozen=True)
class Output:
    """From the last block's output to logits. scale: multiplies what head reads. soft_cap: c of
    c * tanh(logit / c), or None."""

    norm: Norm | None
    projection: Linear | None
    scale: float
    head: Linear
    soft_cap: float | None


@dataclass(frozen=True)
class Program:
    """A decoder. model_type: of config.json. rotations: those that a layer uses, by name.

    position_axes: of positions with several axes (mrope), pairs of channels that each axis turns.
    """

    model_type: str
    embedding: Embedding
    blocks: tuple[Block, ...]
    output: Output
    rotations: tuple[tuple[RotationName, Rope], ...]
    position_axes: tuple[int, ...] = ()

    @property
    def vocab_size(self) -> int:
        return self.embedding.table.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.blocks[0].attention.qkv.in_features

    @property
    def shares_table(self) -> bool:
        """True where embedding and output layer are made of one tensor of the checkpoint."""
        return self.output.head.source == self.embedding.table.name

    def mixers(self) -> Iterator[Mixer]:
        """Every mixer, in the order of execution."""
        for block in self.blocks:
            yield from (sublayer.mixer for sublayer in block.sublayers)


def _kind(linear: Linear) -> object:
    """What linears that become one have in common."""
    if linear.stored is None:
        return None, linear.bias is None
    number_format = linear.stored.number_format
    sizes = (number_format.bits, number_format.group_size)
    return sizes, linear.stored.has_zeros, linear.bias is None
