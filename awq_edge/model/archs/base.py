"""Data of an architecture: names, scale groups and flags, read by the quantizer and the graph.

A decoder block, with the names used here (in parentheses: where an architecture has it):

    x ── attention_norm ── qkv ── (q_norm, k_norm) ── rotary, cache, attention ── attention_out
         ── (attention_post_norm) ──(+)── h
    h ── mlp_norm ── mlp_in (gate, up) ── activation(gate) * up ── mlp_out
         ── (mlp_post_norm) ──(+)── next block

Experts stand in the place of the MLP: a router reads the output of mlp_norm and sends each token
to a few of them. Without a gate, the MLP is mlp_in ── activation ── mlp_out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from awq_edge.errors import ModelError
from awq_edge.model.archs.llama_cpp import LlamaCpp
from awq_edge.model.archs.vision import Vision

if TYPE_CHECKING:
    from awq_edge.model.archs.decoder import Decoder

Config = Mapping[str, Any]

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn", "longrope")
WindowRule = Literal["none", "all_layers", "if_used", "layer_types"]
# rms: x / rms(x) * w. rms_offset: x / rms(x) * (1 + w). layer: LayerNorm, with a bias.
NormKind = Literal["rms", "rms_offset", "layer"]
# What happens to a fold's inverse scale: a norm's weight is divided by it, or the rows of the
# linear before (the value projection, the up projection) are. "none": nothing can be divided, so
# that the scale of the group stays 1.
FoldKind = Literal["norm", "value_rows", "up_rows", "none"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the first `rotary_size` channels of each head.

    rotary_size: channels, even; 0 where positions are learned instead. theta: base. short_factor,
    long_factor: of longrope, one a pair of channels. sections: of positions with several axes
    (mrope), how many pairs of channels each axis turns. factor and the rest: see
    `awq_edge.model.rope`.
    """

    kind: RopeKind
    theta: float
    rotary_size: int
    parameters: tuple[tuple[str, float], ...] = ()
    original_max_positions: int | None = None
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    sections: tuple[int, ...] = ()

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
    """Linears scaled by one AWQ vector s; 1/s goes into `previous`.

    name: short name in reports. previous: the norm or linear that the inverse goes into, relative
    to the block; None with kind "none". rows: those of `previous` that are meant, first and end,
    where it is fused; None for all. readers: further modules that read the same input and stay
    unquantized (the router of experts).
    """

    name: str
    kind: FoldKind
    previous: str | None
    linears: tuple[str, ...]
    readers: tuple[str, ...] = ()
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of the MLP: names relative to the block, as on disk.

    mlp_in, mlp_out: of one expert, "{expert}" stands for its number. module: where transformers'
    class of the block keeps router and experts. The rest are keys of config.json: how many there
    are (the first that is there: transformers' other name before that of its class), how many a
    token is sent to, the channels inside one, and whether the chosen ones' shares are made to sum
    to 1 (True: always).
    """

    router: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    module: str = "mlp"
    num_experts: tuple[str, ...] = ("num_local_experts", "num_experts")
    experts_per_token: str = "num_experts_per_tok"
    intermediate_size: str = "moe_intermediate_size"
    normalised: bool | str = True


@dataclass(frozen=True)
class Architecture:
    """One model_type. A string for a flag or size names the key of config.json that decides it.

    qkv, mlp_in: the linears that read one input; a single name is a fused one, whose rows are
    those of q, k, v (of gate, up). gated: activation(gate) * up; otherwise mlp_in is one linear.
    norm_first: norms stand before attention and MLP; otherwise after the residual sums.
    window_rule: which layers use config.json's sliding_window: none, all_layers, if_used (all,
    where use_sliding_window is true), or layer_types: those that layer_types (or
    use_sliding_window and max_window_layers) name. full_attention_every: where layer_types is
    missing, every n-th layer sees all positions and the others use the window.
    partial_rotary: partial_rotary_factor of the channels of a head are rotated; elsewhere, as in
    transformers, whole heads are. rope_kinds: rotations that it has. rope_names: other names of
    them. local_rope_theta: key of the theta of layers with a window, where it is another one.
    attention_softcap, logits_softcap: c of c * tanh(x / c), on attention scores and on logits.
    attention_scale: key of n in n ** -0.5, which multiplies q k^T; None for the head size.
    scaled_embedding: embeddings are multiplied by sqrt(hidden_size).
    embedding_multiplier, residual_multiplier, attention_multiplier, logits_divisor: keys of what
    multiplies the embeddings, the outputs of attention and MLP before they are added, and q k^T
    (in the place of n ** -0.5), and of what the logits are divided by.
    positions: the table of learned positions; its row position + position_offset is added.
    embedding_size: key of the embedding's channels, where project_in and project_out lie between
    those and hidden_size.
    overflows_float16: known to have activations beyond float16's range.
    vision: of a vision-language model, what stands beside its decoder.
    llama_cpp: the architecture as llama.cpp has it, None where it does not.
    nullable: keys of sizes for which null stands for what follows from the others. defaults: what
    transformers takes where config.json lacks a key. required: keys whose value, as
    a boolean, must be this one; other models of the type are refused. no_effect: keys of
    transformers' class that change no logit, beyond those of every class (`known_keys`).
    """

    model_type: str
    examples: str
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    gated: bool = True
    activations: tuple[str, ...] = ("silu",)
    activation: str = "hidden_act"
    intermediate_size: str = "intermediate_size"
    norm_kind: NormKind = "rms"
    norm_eps: float | str = "rms_norm_eps"
    norm_first: bool | str = True
    window_rule: WindowRule = "none"
    full_attention_every: int | str | None = None
    partial_rotary: bool = False
    rope_kinds: tuple[RopeKind, ...] = ROPE_KINDS
    rope_names: Mapping[str, str] = field(default_factory=dict)
    local_rope_theta: str | None = None
    attention_softcap: str | None = None
    logits_softcap: str | None = None
    attention_scale: str | None = None
    scaled_embedding: bool = False
    embedding_multiplier: str | None = None
    residual_multiplier: str | None = None
    attention_multiplier: str | None = None
    logits_divisor: str | None = None
    experts: Experts | None = None
    attention_norm: str = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attention_out: str = "self_attn.o_proj"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_out: str = "mlp.down_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    embedding: str = "model.embed_tokens"
    embedding_size: str | None = None
    project_in: str = "model.project_in"
    project_out: str = "model.project_out"
    positions: str | None = None
    position_offset: int = 0
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    overflows_float16: bool = False
    vision: Vision | None = None
    llama_cpp: LlamaCpp | None = None
    nullable: tuple[str, ...] = ("head_dim", "num_key_value_heads")
    defaults: Config = field(default_factory=dict)
    required: Mapping[str, bool] = field(default_factory=dict)
    no_effect: tuple[str, ...] = ()

    def decoder(self, config: Config) -> Decoder:
        """Resolve config.json (the whole dictionary) into a Decoder.

        Raises ModelError naming the key that is missing, contradictory or not supported.
        """
        from awq_edge.model.archs.config import resolve_decoder

        return resolve_decoder(self, config)
