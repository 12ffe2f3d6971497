"""A decoder-only model, resolved from its architecture and config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass

from awq_edge.model.archs.base import Architecture, FoldKind, Linear, Rope, ScaleGroup
from awq_edge.model.archs.vision import ImageTokens

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MixtureOfExperts:
    """intermediate_size: channels inside one expert. normalised: the shares of the experts that a
    token is sent to sum to 1. layers: one entry a layer: whether experts stand for its MLP."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    normalised: bool
    layers: tuple[bool, ...]


@dataclass(frozen=True)
class Decoder:
    """Every size and flag that the quantizer and the graph need.

    windows: one entry a layer: the number of positions a query sees, itself included, or None.
    rope, local_rope: of layers without and with a window. attention_scale: multiplies q k^T.
    attention_softcap, logits_softcap: c of c * tanh(x / c), None for no cap. embedding_scale:
    multiplies the embeddings (transformers rounds it to their dtype first). embedding_size: their
    channels. max_positions: tokens. images: of a vision-language model.
    residual_scale: multiplies what attention and MLP add. logits_divisor: divides the logits.
    notes: what of config.json was read otherwise than it is written, or not at all.
    doubtful_keys: keys that may have an effect in a newer transformers (`known_keys`).
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    embedding_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_positions: int
    norm_eps: float
    norm_first: bool
    activation: str
    rope: Rope
    local_rope: Rope
    windows: tuple[int | None, ...]
    attention_scale: float
    attention_softcap: float | None
    logits_softcap: float | None
    embedding_scale: float
    moe: MixtureOfExperts | None
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    images: ImageTokens | None = None
    doubtful_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        return self.architecture.model_type

    @property
    def norm_offset(self) -> float:
        """The number that is added to a norm's weight before it multiplies."""
        return 1.0 if self.architecture.norm_kind == "rms_offset" else 0.0

    @property
    def has_projections(self) -> bool:
        """True where linears lie between the embedding's channels and the blocks' channels."""
        return self.embedding_size != self.hidden_size

    @property
    def widest_intermediate_size(self) -> int:
        """Channels inside the widest FFN that a layer has, an expert's or a dense one."""
        sizes = {
            self.moe.intermediate_size
            if self.moe is not None and self.moe.layers[layer]
            else self.intermediate_size
            for layer in range(self.num_layers)
        }
        return max(sizes)

    def has_experts(self, layer: int) -> bool:
        return self.moe is not None and self.moe.layers[layer]

    def layer_prefix(self, layer: int) -> str:
        """Name of block `layer` in the checkpoint: "model.layers.3"."""
        return f"{self.architecture.layers}.{layer}"

    def linears(self, layer: int) -> tuple[Linear, ...]:
        """The linears of a block that may be quantized, in the order of execution."""
        arch = self.architecture
        q_size, kv_size = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        hidden, inner = self.hidden_size, self.intermediate_size
        qkv = _sizes(arch.qkv, (q_size, kv_size, kv_size))
        attention = (
            *(Linear(name, hidden, size, self.qkv_bias) for name, size in qkv),
            Linear(arch.attention_out, q_size, hidden, self.output_bias),
        )
        if self.has_experts(layer):
            return attention + self._expert_linears()
        mlp_in = _sizes(arch.mlp_in, (inner, inner) if arch.gated else (inner,))
        return (
            *attention,
            *(Linear(name, hidden, size, self.mlp_bias) for name, size in mlp_in),
            Linear(arch.mlp_out, inner, hidden, self.mlp_bias),
        )

    def scale_groups(self, layer: int) -> tuple[ScaleGroup, ...]:
        """The AWQ scale groups of a block, in the order of execution."""
        arch = self.architecture
        rows = None
        if len(arch.qkv) == 1:
            end = (self.num_heads + 2 * self.num_kv_heads) * self.head_size
            rows = (end - self.num_kv_heads * self.head_size, end)
        values = ScaleGroup(
            "attention_out", "value_rows", arch.qkv[-1], (arch.attention_out,), rows=rows
        )
        attention = (self._normed("attention_in", arch.attention_norm, arch.qkv), values)
        return attention + (self._expert_groups() if self.has_experts(layer) else self._mlp())

    def inputs(self, layer: int) -> dict[str, tuple[str, ...]]:
        """The distinct inputs of the linears of a block: name -> the linears that read it.

        Each expert has its own: it sees only the tokens that are sent to it.
        """
        readers: dict[str, tuple[str, ...]] = {}
        for group in self.scale_groups(layer):
            if group.name == "mlp_in" and self.has_experts(layer):
                readers |= {
                    f"{group.name}.{expert}": self._of_expert(expert)[0]
                    for expert in range(self._experts.num_experts)
                }
            else:
                readers[group.name] = group.linears
        return readers

    def token_share(self, layer: int, source: str) -> float:
        """The share of all tokens in an input of a block (see `inputs`), if experts are equally
        busy."""
        if self.has_experts(layer) and source.startswith(("mlp_in.", "mlp_out.")):
            return self._experts.experts_per_token / self._experts.num_experts
        return 1.0

    def norms(self) -> dict[str, int]:
        """Norms of one block: name relative to the block -> number of channels."""
        arch = self.architecture
        whole = (
            arch.attention_norm,
            arch.attention_post_norm,
            arch.mlp_norm,
            arch.mlp_post_norm,
        )
        sizes = {name: self.hidden_size for name in whole if name is not None}
        if arch.qk_norm:
            sizes |= {arch.q_norm: self.head_size, arch.k_norm: self.head_size}
        return sizes

    def block_shapes(self, layer: int) -> Shapes:
        """Every weight of an unquantized block by name relative to it, with its shape."""
        shapes: Shapes = {}
        for name, size in self.norms().items():
            shapes |= self._norm_shapes(name, size)
        if self.has_experts(layer):
            router = f"{self._router}.weight"
            shapes[router] = (self._experts.num_experts, self.hidden_size)
        for linear in self.linears(layer):
            shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[f"{linear.name}.bias"] = (linear.out_features,)
        return shapes

    def input_shapes(self) -> Shapes:
        """Tensors that make the first block's input of token ids: full names, shapes."""
        arch, hidden = self.architecture, self.hidden_size
        shapes: Shapes = {f"{arch.embedding}.weight": (self.vocab_size, self.embedding_size)}
        if arch.positions is not None:
            rows = self.max_positions + arch.position_offset
            shapes[f"{arch.positions}.weight"] = (rows, hidden)
        if self.has_projections:
            shapes[f"{arch.project_in}.weight"] = (hidden, self.embedding_size)
        return shapes

    def weight_shapes(self) -> Shapes:
        """Every weight of the unquantized checkpoint by full name, with its shape.

        lm_head is absent where the embeddings are tied.
        """
        arch, hidden = self.architecture, self.hidden_size
        shapes = self.input_shapes()
        for layer in range(self.num_layers):
            prefix = self.layer_prefix(layer)
            shapes |= {f"{prefix}.{name}": s for name, s in self.block_shapes(layer).items()}
        if self.norm_first:
            shapes |= self._norm_shapes(arch.final_norm, hidden)
        if self.has_projections:
            shapes[f"{arch.project_out}.weight"] = (self.embedding_size, hidden)
        if not self.tied_embeddings:
            shapes[f"{arch.lm_head}.weight"] = (self.vocab_size, self.embedding_size)
        return shapes

    def count_parameters(self, *, was_tied: bool) -> int:
        """Parameters of the unquantized model, a tied output layer counted with the embedding.

        was_tied: the output layer is stored beside the embedding that it was made from, and
        config.json says no more that they are one (`Checkpoint.output_layer_was_tied`).
        """
        shapes = self.weight_shapes()
        copy = shapes.get(f"{self.architecture.lm_head}.weight") if was_tied else None
        return sum(map(math.prod, shapes.values())) - (0 if copy is None else math.prod(copy))

    def unquantized_modules(self) -> tuple[str, ...]:
        """Full names of modules with linears that are never quantized: routers, projections,
        vision towers; the latter also as transformers' class has them."""
        arch = self.architecture
        routers = (
            f"{self.layer_prefix(layer)}.{self._router}"
            for layer in range(self.num_layers)
            if self.has_experts(layer)
        )
        projections = (arch.project_in, arch.project_out) if self.has_projections else ()
        vision = arch.vision
        parts = () if vision is None else vision.parts
        in_memory = () if vision is None else map(vision.name_in_memory, parts)
        return (*routers, *projections, *parts, *in_memory)

    @property
    def _experts(self) -> MixtureOfExperts:
        assert self.moe is not None
        return self.moe

    @property
    def _router(self) -> str:
        assert self.architecture.experts is not None
        return self.architecture.experts.router

    def _of_expert(self, expert: int) -> tuple[tuple[str, ...], str]:
        """The names of its mlp_in and mlp_out."""
        names = self.architecture.experts
        assert names is not None
        mlp_in = tuple(name.format(expert=expert) for name in names.mlp_in)
        return mlp_in, names.mlp_out.format(expert=expert)

    def _expert_linears(self) -> tuple[Linear, ...]:
        hidden, inner = self.hidden_size, self._experts.intermediate_size
        linears = []
        for expert in range(self._experts.num_experts):
            mlp_in, mlp_out = self._of_expert(expert)
            linears += [Linear(name, hidden, inner, False) for name in mlp_in]
            linears.append(Linear(mlp_out, inner, hidden, False))
        return tuple(linears)

    def _expert_groups(self) -> tuple[ScaleGroup, ...]:
        """One scale for the input of all experts and the router, one inside each expert."""
        experts = [self._of_expert(expert) for expert in range(self._experts.num_experts)]
        readers = tuple(name for mlp_in, _ in experts for name in mlp_in)
        return (
            self._normed("mlp_in", self.architecture.mlp_norm, readers, (self._router,)),
            *(
                ScaleGroup(f"mlp_out.{number}", "up_rows", mlp_in[-1], (mlp_out,))
                for number, (mlp_in, mlp_out) in enumerate(experts)
            ),
        )

    def _mlp(self) -> tuple[ScaleGroup, ...]:
        arch, inner = self.architecture, self.intermediate_size
        first = self._normed("mlp_in", arch.mlp_norm, arch.mlp_in)
        # Without a gate the scale has to pass the activation, which relu alone lets it.
        kind: FoldKind = "up_rows" if arch.gated or self.activation == "relu" else "none"
        rows = (inner, 2 * inner) if arch.gated and len(arch.mlp_in) == 1 else None
        previous = arch.mlp_in[-1] if kind == "up_rows" else None
        return (first, ScaleGroup("mlp_out", kind, previous, (arch.mlp_out,), rows=rows))

    def _normed(
        self, name: str, norm: str, linears: tuple[str, ...], readers: tuple[str, ...] = ()
    ) -> ScaleGroup:
        """Linears that read a norm's output; where norms stand after the residual sum, that is
        the residual too, and nothing can be divided."""
        if not self.norm_first:
            return ScaleGroup(name, "none", None, linears, readers)
        return ScaleGroup(name, "norm", norm, linears, readers)

    def _norm_shapes(self, name: str, size: int) -> Shapes:
        parts = ("weight", "bias") if self.architecture.norm_kind == "layer" else ("weight",)
        return {f"{name}.{part}": (size,) for part in parts}


def _sizes(names: tuple[str, ...], sizes: tuple[int, ...]) -> list[tuple[str, int]]:
    """Rows of each linear; a single name has them all."""
    if len(names) == 1:
        return [(names[0], sum(sizes))]
    return list(zip(names, sizes, strict=True))
