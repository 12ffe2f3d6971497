"""What an architecture is: names, scale groups and flags, read by the quantizer and the graph.

A decoder block, with the names used here:

    x ── attention_norm ── qkv ── (q/k norm) ── rotary, cache, attention ── attention_out ──(+)── h
    h ── mlp_norm ── mlp_in (gate, up) ── activation(gate) * up ── mlp_out ──(+)── next block
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from awq_edge.errors import ModelError

Config = Mapping[str, Any]

RopeKind = Literal["default", "linear", "llama3", "yarn"]
WindowRule = Literal["none", "all_layers", "layer_types"]
# What happens to a fold's inverse scale: a norm's weight is divided by it, or the rows of the
# linear before (the value projection, the up projection) are.
FoldKind = Literal["norm", "value_rows", "up_rows"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the first `rotary_size` channels of each head.

    rotary_size: channels, even. theta: base. factor and the rest: see `awq_edge.rope`.
    """

    kind: RopeKind
    theta: float
    rotary_size: int
    parameters: tuple[tuple[str, float], ...] = ()
    original_max_positions: int | None = None

    def parameter(self, name: str, default: float | None = None) -> float:
        """One scaling parameter; raises ModelError when it is missing and has no default."""
        value = dict(self.parameters).get(name, default)
        if value is None:
            raise ModelError(
                f"config.json: rope type '{self.kind}' needs '{name}' in rope_parameters"
            )
        return value


@dataclass(frozen=True)
class Linear:
    """One linear of a block: y = x W^T (+ b), W stored as [out_features, in_features].

    name: the weight's name relative to the block, without ".weight" ("self_attn.q_proj").
    """

    name: str
    in_features: int
    out_features: int
    bias: bool


@dataclass(frozen=True)
class ScaleGroup:
    """Linears that read one input, scaled by one AWQ vector s; 1/s goes into `previous`.

    name: short name in reports. previous: the weight the inverse goes into, relative to the block.
    readers: further modules that read the same input and stay unquantized (an MoE router).
    """

    name: str
    kind: FoldKind
    previous: str
    linears: tuple[str, ...]
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """One model_type. A string for a flag names the boolean key of config.json that decides it.

    window_rule: which layers use config.json's sliding_window: none, all_layers, or those that
    layer_types (or use_sliding_window and max_window_layers) name.
    """

    model_type: str
    examples: str
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    window_rule: WindowRule = "none"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attention_out: str = "self_attn.o_proj"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_out: str = "mlp.down_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"

    def decoder(self, config: Config) -> Decoder:
        """Resolve config.json (the whole dictionary) into a Decoder.

        Raises ModelError naming the key that is missing, contradictory or not supported.
        """
        from awq_edge.archs.config import resolve_decoder

        return resolve_decoder(self, config)


@dataclass(frozen=True)
class Decoder:
    """A decoder-only model, resolved: every size and flag that the quantizer and the graph need.

    windows: one entry a layer: the number of positions a query sees, itself included, or None.
    attention_scale: multiplies q k^T. max_positions: tokens.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_positions: int
    norm_eps: float
    activation: str
    rope: Rope
    windows: tuple[int | None, ...]
    attention_scale: float
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def model_type(self) -> str:
        return self.architecture.model_type

    def layer_prefix(self, layer: int) -> str:
        """Name of block `layer` in the checkpoint: "model.layers.3"."""
        return f"{self.architecture.layers}.{layer}"

    def linears(self) -> tuple[Linear, ...]:
        """The linears of one block, in the order of execution."""
        arch = self.architecture
        q_size, kv_size = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        hidden, inner = self.hidden_size, self.intermediate_size
        qkv = zip(arch.qkv, (q_size, kv_size, kv_size), strict=True)
        return (
            *(Linear(name, hidden, size, self.qkv_bias) for name, size in qkv),
            Linear(arch.attention_out, q_size, hidden, self.output_bias),
            *(Linear(name, hidden, inner, self.mlp_bias) for name in arch.mlp_in),
            Linear(arch.mlp_out, inner, hidden, self.mlp_bias),
        )

    def scale_groups(self) -> tuple[ScaleGroup, ...]:
        """The AWQ scale groups of one block, in the order of execution."""
        arch = self.architecture
        return (
            ScaleGroup("attention_in", "norm", arch.attention_norm, arch.qkv),
            ScaleGroup("attention_out", "value_rows", arch.qkv[-1], (arch.attention_out,)),
            ScaleGroup("mlp_in", "norm", arch.mlp_norm, arch.mlp_in),
            ScaleGroup("mlp_out", "up_rows", arch.mlp_in[-1], (arch.mlp_out,)),
        )

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The distinct inputs of the linears of one block: name -> the linears that read it."""
        return {group.name: group.linears for group in self.scale_groups()}

    def norms(self) -> dict[str, int]:
        """Norm weights of one block: name relative to the block -> number of channels."""
        arch = self.architecture
        sizes = {arch.attention_norm: self.hidden_size, arch.mlp_norm: self.hidden_size}
        if arch.qk_norm:
            sizes |= {arch.q_norm: self.head_size, arch.k_norm: self.head_size}
        return sizes

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the unquantized checkpoint by full name, with its shape.

        lm_head is absent where the embeddings are tied.
        """
        arch = self.architecture
        shapes: dict[str, tuple[int, ...]] = {
            f"{arch.embedding}.weight": (self.vocab_size, self.hidden_size)
        }
        for layer in range(self.num_layers):
            prefix = self.layer_prefix(layer)
            for name, size in self.norms().items():
                shapes[f"{prefix}.{name}.weight"] = (size,)
            for linear in self.linears():
                shapes[f"{prefix}.{linear.name}.weight"] = (
                    linear.out_features,
                    linear.in_features,
                )
                if linear.bias:
                    shapes[f"{prefix}.{linear.name}.bias"] = (linear.out_features,)
        shapes[f"{arch.final_norm}.weight"] = (self.hidden_size,)
        if not self.tied_embeddings:
            shapes[f"{arch.lm_head}.weight"] = (self.vocab_size, self.hidden_size)
        return shapes
