"""From a decoder and the formats of its linears to a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from awq_edge.model.archs import Decoder
from awq_edge.model.archs.base import Experts as ExpertNames
from awq_edge.model.archs.base import Linear as BlockLinear
from awq_edge.model.archs.base import Rope
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.program.fold import fold_multipliers
from awq_edge.program.formats import Formats, checkpoint_formats
from awq_edge.program.program import (
    Attention,
    Block,
    Embedding,
    Experts,
    Linear,
    LinearGroup,
    Mixer,
    Mlp,
    Norm,
    Output,
    Part,
    Program,
    RotationName,
    Sublayer,
    Tensor,
)


def build_program(
    decoder: Decoder, formats: Formats, layers: Sequence[int] | None = None
) -> Program:
    """The program of a decoder, its multipliers folded where that is exact.

    layers: those that become blocks; None: all.
    """
    numbers = range(decoder.num_layers) if layers is None else layers
    builder = _Builder(decoder, formats)
    return fold_multipliers(
        Program(
            model_type=decoder.model_type,
            embedding=builder.embedding(),
            blocks=tuple(map(builder.block, numbers)),
            output=builder.output(),
            rotations=_rotations(decoder),
            position_axes=decoder.rope.sections,
        )
    )


def checkpoint_program(checkpoint: Checkpoint, lm_head_bits: int) -> Program:
    """The program of a checkpoint as it is stored.

    lm_head_bits: of an output layer that it has unquantized.
    """
    return build_program(checkpoint.decoder, checkpoint_formats(checkpoint, lm_head_bits))


def rotation_of(decoder: Decoder, layer: int) -> RotationName | None:
    """The rotary tables of a layer; None where positions are learned."""
    is_local = decoder.windows[layer] is not None and decoder.local_rope != decoder.rope
    rope = decoder.local_rope if is_local else decoder.rope
    if rope.rotary_size == 0:
        return None
    return "rope.local" if is_local else "rope"


def _rotations(decoder: Decoder) -> tuple[tuple[RotationName, Rope], ...]:
    used = dict.fromkeys(rotation_of(decoder, layer) for layer in range(decoder.num_layers))
    return tuple(
        (name, decoder.local_rope if name == "rope.local" else decoder.rope)
        for name in used
        if name is not None
    )


class _Builder:
    def __init__(self, decoder: Decoder, formats: Formats) -> None:
        self._decoder = decoder
        self._arch = decoder.architecture
        self._formats = formats

    def embedding(self) -> Embedding:
        decoder, arch = self._decoder, self._arch
        table = f"{arch.embedding}.weight"
        positions = f"{arch.positions}.weight"
        shapes = decoder.input_shapes()
        return Embedding(
            table=Tensor(table, shapes[table], "embedding"),
            scale=decoder.embedding_scale,
            projection=self._dense(
                arch.project_in, decoder.embedding_size, decoder.hidden_size, "embedding"
            )
            if decoder.has_projections
            else None,
            positions=None
            if arch.positions is None
            else Tensor(positions, shapes[positions], "embedding"),
            position_offset=arch.position_offset,
            exact=self._formats.main is None and decoder.dtype == "float32",
        )

    def output(self) -> Output:
        decoder, arch = self._decoder, self._arch
        projection = None
        if decoder.has_projections:
            projection = self._dense(
                arch.project_out, decoder.hidden_size, decoder.embedding_size, "lm_head"
            )
        source = arch.embedding if decoder.tied_embeddings else arch.lm_head
        head = self._dense(arch.lm_head, decoder.embedding_size, decoder.vocab_size, "lm_head")
        stored = self._formats.lm_head
        return Output(
            # Where norms do not stand first, each block ends in one.
            norm=self._norm(arch.final_norm, "lm_head") if decoder.norm_first else None,
            projection=projection,
            scale=1.0 / decoder.logits_divisor,
            head=replace(
                head,
                source=f"{source}.weight",
                stored=stored,
                is_rounded=stored is not None and not self._formats.stored_lm_head,
            ),
            soft_cap=decoder.logits_softcap,
        )

    def block(self, layer: int) -> Block:
        """Attention, and an MLP or experts.

        Without norms in front, a sublayer's norm stands behind its sum.
        """
        decoder, arch = self._decoder, self._arch
        prefix = decoder.layer_prefix(layer)
        linears = {linear.name: linear for linear in decoder.linears(layer)}
        of_layer = _Layer(self, layer, prefix, linears)
        experts = arch.experts if decoder.has_experts(layer) else None
        second: Mixer = of_layer.mlp() if experts is None else of_layer.experts(experts)
        sublayers = (
            ("attention", of_layer.attention(), arch.attention_norm, arch.attention_post_norm),
            ("mlp", second, arch.mlp_norm, arch.mlp_post_norm),
        )

        def sublayer(name: str, mixer: Mixer, norm: str, post_norm: str | None) -> Sublayer:
            its_norm = self._norm(f"{prefix}.{norm}", "blocks")
            return Sublayer(
                name=f"{prefix}.{name}",
                mixer=mixer,
                norm=its_norm if decoder.norm_first else None,
                post_norm=None
                if post_norm is None
                else self._norm(f"{prefix}.{post_norm}", "blocks"),
                end_norm=None if decoder.norm_first else its_norm,
                residual_scale=decoder.residual_scale,
            )

        return Block(prefix, tuple(sublayer(*each) for each in sublayers))

    def linear(self, prefix: str, linear: BlockLinear, read_share: float = 1.0) -> Linear:
        name = f"{prefix}.{linear.name}"
        return Linear(
            name=name,
            source=f"{name}.weight",
            in_features=linear.in_features,
            out_features=linear.out_features,
            bias=Tensor(f"{name}.bias", (linear.out_features,), "blocks") if linear.bias else None,
            part="blocks",
            stored=self._formats.blocks(name, linear.out_features, linear.in_features),
            read_share=read_share,
        )

    def norm(self, name: str, size: int) -> Norm:
        """A norm of the blocks."""
        return self._norm(name, "blocks", size)

    @property
    def decoder(self) -> Decoder:
        return self._decoder

    def _norm(self, name: str, part: Part, size: int | None = None) -> Norm:
        decoder = self._decoder
        shape = (decoder.hidden_size if size is None else size,)
        is_layer = self._arch.norm_kind == "layer"
        return Norm(
            kind="layer" if is_layer else "rms",
            name=name,
            weight=Tensor(f"{name}.weight", shape, part),
            bias=Tensor(f"{name}.bias", shape, part) if is_layer else None,
            eps=decoder.norm_eps,
            offset=decoder.norm_offset,
        )

    def _dense(self, name: str, in_features: int, out_features: int, part: Part) -> Linear:
        return Linear(name, f"{name}.weight", in_features, out_features, None, part)


class _Layer:
    """The mixers of one layer. prefix: of its modules. linears: by their names relative to it."""

    def __init__(
        self, builder: _Builder, layer: int, prefix: str, linears: dict[str, BlockLinear]
    ) -> None:
        self._builder = builder
        self._decoder = builder.decoder
        self._arch = builder.decoder.architecture
        self._layer = layer
        self._prefix = prefix
        self._linears = linears

    def attention(self) -> Attention:
        decoder, arch, prefix = self._decoder, self._arch, self._prefix
        size = decoder.head_size
        kv_size = decoder.num_kv_heads * size
        q_norm, k_norm = (
            self._builder.norm(f"{prefix}.{name}", size) if arch.qk_norm else None
            for name in (arch.q_norm, arch.k_norm)
        )
        return Attention(
            name=self._parent(arch.attention_out),
            qkv=self._group(arch.qkv, (decoder.num_heads * size, kv_size, kv_size)),
            out=self._linear(arch.attention_out),
            num_heads=decoder.num_heads,
            num_kv_heads=decoder.num_kv_heads,
            head_size=size,
            q_norm=q_norm,
            k_norm=k_norm,
            rotation=rotation_of(decoder, self._layer),
            scale=float(decoder.attention_scale),
            soft_cap=decoder.attention_softcap,
            window=decoder.windows[self._layer],
        )

    def mlp(self) -> Mlp:
        decoder, arch = self._decoder, self._arch
        inner = decoder.intermediate_size
        sizes = (inner, inner) if arch.gated else (inner,)
        return self._mlp(arch.mlp_in, arch.mlp_out, sizes)

    def experts(self, names: ExpertNames) -> Experts:
        decoder, moe = self._decoder, self._decoder.moe
        assert moe is not None
        router = BlockLinear(names.router, decoder.hidden_size, moe.num_experts, False)
        sizes = (moe.intermediate_size,) * len(names.mlp_in)
        return Experts(
            name=self._parent(names.router),
            router=replace(self._builder.linear(self._prefix, router), stored=None),
            experts=tuple(
                self._mlp(
                    tuple(name.format(expert=expert) for name in names.mlp_in),
                    names.mlp_out.format(expert=expert),
                    sizes,
                    moe.experts_per_token / moe.num_experts,
                )
                for expert in range(moe.num_experts)
            ),
            per_token=moe.experts_per_token,
            is_normalised=moe.normalised,
        )

    def _mlp(
        self,
        mlp_in: tuple[str, ...],
        mlp_out: str,
        sizes: tuple[int, ...],
        read_share: float = 1.0,
    ) -> Mlp:
        return Mlp(
            name=self._parent(mlp_out),
            inputs=self._group(mlp_in, sizes, read_share),
            activation=self._decoder.activation,
            out=self._linear(mlp_out, read_share),
        )

    def _group(
        self, names: tuple[str, ...], sizes: tuple[int, ...], read_share: float = 1.0
    ) -> LinearGroup:
        return LinearGroup(tuple(self._linear(name, read_share) for name in names), sizes)

    def _linear(self, name: str, read_share: float = 1.0) -> Linear:
        return self._builder.linear(self._prefix, self._linears[name], read_share)

    def _parent(self, name: str) -> str:
        """The module that holds a part: "mlp.down_proj" -> "model.layers.0.mlp"; the block itself
        where it holds the part directly."""
        return f"{self._prefix}.{name}".rpartition(".")[0]
