"""The sizes of a bundle's weights for one runtime, from a decoder and its number formats.

The same tensors that a lowering writes, without their values; a test holds the sums to those of
the lowerings, for every architecture and runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from awq_edge.fit.formats import Formats, Quantized
from awq_edge.fit.storage import ITEM_BYTES, Target
from awq_edge.model.archs import Decoder, Linear
from awq_edge.model.weight_totals import Part


@dataclass(frozen=True)
class TensorSize:
    """One tensor of the weight file; see `awq_edge.model.weight_totals.Sized`. scale_groups: with
    the first tensor of a linear, see `LinearSizes`."""

    part: Part
    nbytes: int
    shape: tuple[int, ...] = (1,)
    read_share: float = 1.0
    scale_groups: int = 0


class WeightSizes:
    """The tensors of one model for one target."""

    def __init__(self, decoder: Decoder, formats: Formats, target: Target) -> None:
        self._decoder = decoder
        self._formats = formats
        self._target = target

    def without_tables(self) -> list[TensorSize]:
        """Everything that does not depend on the context."""
        kinds: dict[bool, list[TensorSize]] = {}
        tensors = [*self._inputs()]
        for layer in range(self._decoder.num_layers):
            kind = self._decoder.has_experts(layer)
            if kind not in kinds:  # layers of a kind have the same sizes
                kinds[kind] = list(self._block(layer))
            tensors += kinds[kind]
        return [*tensors, *self._outputs()]

    def tables(self, context: int) -> list[TensorSize]:
        """Cosine and sine, a row a position, and other tensors that a graph has once."""
        decoder, item = self._decoder, ITEM_BYTES[self._target.tables_dtype]
        tensors = []
        if decoder.moe is not None and not self._target.routes_experts:
            tensors.append(TensorSize("tables", self._target.item))  # the zero of experts not asked
        for rotary_size in self._rotations():
            half = rotary_size // 2
            tensors += [TensorSize("tables", context * half * item, (context, half))] * 2
        return tensors

    def _rotations(self) -> list[int]:
        """Rotated channels of each pair of tables that a layer reads."""
        decoder = self._decoder
        if decoder.rope.rotary_size == 0:
            return []
        separate = decoder.local_rope != decoder.rope
        local = [window is not None and separate for window in decoder.windows]
        used = [decoder.rope.rotary_size] if not all(local) else []
        return used + ([decoder.local_rope.rotary_size] if any(local) else [])

    def _inputs(self) -> Iterator[TensorSize]:
        decoder, item = self._decoder, self._target.item
        shapes = list(decoder.input_shapes().values())
        table, others = shapes[0], shapes[1:]
        yield TensorSize("embedding", math.prod(table) * self._embedding_item(), table)
        for shape in others:
            yield TensorSize("embedding", math.prod(shape) * item, self._turned(shape))

    def _embedding_item(self) -> int:
        """Bytes of a value; float32 where a float32 model stays unquantized in it."""
        if self._target.casts_embedding:
            return self._target.item
        decoder = self._decoder
        exact = self._formats.main is None and self._target.activation_dtype == "float32"
        return ITEM_BYTES["float32" if exact and decoder.dtype == "float32" else "float16"]

    def _turned(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in a graph: project_in, [hidden, embedding], is transposed there; the table of
        learned positions stays as it is."""
        decoder = self._decoder
        is_projection = shape == (decoder.hidden_size, decoder.embedding_size)
        return shape[::-1] if decoder.has_projections and is_projection else shape

    def _block(self, layer: int) -> Iterator[TensorSize]:
        decoder, item = self._decoder, self._target.item
        prefix, linears = decoder.layer_prefix(layer), decoder.linears(layer)
        of_linears = {f"{linear.name}.weight" for linear in linears}
        for name, shape in decoder.block_shapes(layer).items():
            if name not in of_linears:  # norms, biases, the router
                yield TensorSize("blocks", math.prod(shape) * item)
        shares = self._shares(layer)
        for group in self._groups(layer, prefix, linears):
            yield from self._linear("blocks", *group, shares[group[2].name])

    def _shares(self, layer: int) -> dict[str, float]:
        """The share of tokens that reads each linear."""
        decoder = self._decoder
        routed = self._target.routes_experts
        return {
            name: decoder.token_share(layer, source) if routed else 1.0
            for source, names in decoder.inputs(layer).items()
            for name in names
        }

    def _groups(
        self, layer: int, prefix: str, linears: tuple[Linear, ...]
    ) -> Iterator[tuple[Quantized | None, int, Linear]]:
        """Format, rows and the first of the linears that become one, or of a single one.

        The kernels' tiles of rows are filled up: what is merged is filled up once.
        """
        formats = {
            linear.name: self._formats.blocks(
                f"{prefix}.{linear.name}", linear.out_features, linear.in_features
            )
            for linear in linears
        }
        by_name = {linear.name: linear for linear in linears}
        for names in self._decoder.inputs(layer).values():
            merged: dict[Quantized | None, list[Linear]] = {}
            for name in names:
                merged.setdefault(formats[name], []).append(by_name[name])
            for quantized, members in merged.items():
                if quantized is None:
                    yield from ((None, each.out_features, each) for each in members)
                else:
                    yield quantized, sum(each.out_features for each in members), members[0]

    def _outputs(self) -> Iterator[TensorSize]:
        decoder, item = self._decoder, self._target.item
        if decoder.norm_first:
            norms = 2 if decoder.architecture.norm_kind == "layer" else 1
            yield TensorSize("lm_head", norms * decoder.hidden_size * item)
        if decoder.has_projections:
            yield TensorSize("lm_head", decoder.embedding_size * decoder.hidden_size * item)
        head = Linear(
            decoder.architecture.lm_head, decoder.embedding_size, decoder.vocab_size, False
        )
        yield from self._linear("lm_head", self._formats.lm_head, head.out_features, head)

    def _linear(
        self,
        part: Part,
        quantized: Quantized | None,
        rows: int,
        linear: Linear,
        share: float = 1.0,
    ) -> Iterator[TensorSize]:
        columns, groups = linear.in_features, 0
        if quantized is None:
            sizes: Sequence[int] = [rows * columns * self._target.item]
        else:
            stored = self._target.linear_sizes(rows, columns, quantized, self._target)
            sizes, groups = stored.tensors, stored.scale_groups
        for size in sizes:
            yield TensorSize(part, size, read_share=share, scale_groups=groups)
            groups = 0  # counted with the first
