"""The weights of a program as one runtime stores them: what a lowering writes, and `fit` counts.

A runtime's record names the function that makes its `Form` of a recipe and a program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from awq_edge.model.archs.base import Rope
from awq_edge.model.rope import rope_tables
from awq_edge.program.kernel_layout import kernel_linear
from awq_edge.program.matmul_nbits import matmul_nbits
from awq_edge.program.native_layout import native_linear
from awq_edge.program.program import (
    Attention,
    Block,
    Embedding,
    Experts,
    Linear,
    LinearGroup,
    Mixer,
    Norm,
    Output,
    Program,
    Tensor,
)
from awq_edge.program.sources import Sources
from awq_edge.program.stored import StoredLinear, bias_of, dense_tensor, module_of, parts_of
from awq_edge.program.weights import Array, Dtype, Weight, concatenated, numpy_type
from awq_edge.recipe.recipes import Recipe

# Linears of one format, their places in their group, their origin and the activations' type.
Quantize = Callable[[Sequence[Linear], tuple[int, ...], Sources, Dtype], StoredLinear]


@dataclass(frozen=True)
class Form:
    """The choices of a runtime, as one recipe has them.

    quantized: makes a quantized linear. weaves: activations of a gate for which gate and up are one
    linear in the layout of the kernels, their rows woven for an epilogue. dtype: of the
    activations. tables_dtype: of the rotary tables. merges_dense: unquantized linears of one input
    are one matrix [out, in]; otherwise each is a matrix [in, out]. casts_embedding: the embedding's
    table is in the activations' type; otherwise in the smallest that loses nothing. routes_experts:
    a token reads its own experts alone, otherwise all of them.
    """

    quantized: Quantize
    dtype: Dtype
    tables_dtype: Dtype
    weaves: frozenset[str] = frozenset()
    merges_dense: bool = False
    casts_embedding: bool = False
    routes_experts: bool = False


# The form that a recipe chooses for a program.
FormOf = Callable[[Recipe, Program], Form]


def onnxruntime_form(recipe: Recipe, program: Program) -> Form:
    """Weights of MatMulNBits and GroupQueryAttention."""
    level, dtype = recipe.runtime.accuracy_level, recipe.runtime.activation_dtype
    return Form(
        functools.partial(matmul_nbits, accuracy_level=level), dtype, dtype, routes_experts=True
    )


def tensorrt_form(recipe: Recipe, program: Program) -> Form:
    """Weights of the plugin, or of TensorRT's own layers."""
    dtype, is_plugin = recipe.runtime.activation_dtype, recipe.export.linear == "plugin"
    # Attention of ONNX takes tables in its own type; the plugin, and the primitives that stand for
    # soft caps and in graphs for old versions, take float32.
    capped = any(isinstance(each, Attention) and each.soft_cap for each in program.mixers())
    has_layers = recipe.export.attention == "native" and not recipe.runtime.record.decomposes(
        recipe.runtime.version
    )
    return Form(
        kernel_linear if is_plugin else native_linear,
        dtype,
        dtype if has_layers and not capped else "float32",
        weaves=frozenset({"silu"} if is_plugin else ()),
    )


def cuda_form(recipe: Recipe, program: Program) -> Form:
    """Weights in the layout of the kernels."""
    dtype = recipe.runtime.activation_dtype
    weaves = frozenset({"silu", "gelu", "gelu_pytorch_tanh"})
    return Form(
        kernel_linear,
        dtype,
        "float32",
        weaves,
        merges_dense=True,
        casts_embedding=True,
        routes_experts=True,
    )


class Storage:
    """A form, and where its weights come from."""

    def __init__(self, form: Form, sources: Sources) -> None:
        self.form = form
        self._sources = sources

    def tensor(self, tensor: Tensor) -> Weight:
        """A tensor in the activations' type."""
        return self._sources.dense(tensor, self.form.dtype)

    def norm(self, norm: Norm) -> tuple[Weight, ...]:
        """Weight, and where there is one bias, as they are multiplied and added."""
        dtype, factor = self.form.dtype, norm.factor
        weight = self._sources.dense(norm.weight, dtype, offset=norm.offset, factor=factor)
        if norm.bias is None:
            return (weight,)
        return weight, self._sources.dense(norm.bias, dtype, factor=factor)

    def linears(self, group: LinearGroup, gate: str | None = None) -> tuple[StoredLinear, ...]:
        """Linears of one input, as few as their formats allow.

        gate: the activation of the first, which multiplies the second.
        """
        stored: list[StoredLinear] = []
        for places, linears in parts_of(group):
            if not self.form.routes_experts:
                linears = tuple(replace(linear, read_share=1.0) for linear in linears)
            if linears[0].stored is None:
                stored += self._dense(linears, places)
                continue
            if gate in self.form.weaves and (len(linears) == 2 or group.is_fused):
                woven = kernel_linear(linears, places, self._sources, self.form.dtype, gate_up=True)
                stored.append(woven)
                continue
            stored.append(self.form.quantized(linears, places, self._sources, self.form.dtype))
        return tuple(stored)

    def linear(self, linear: Linear) -> StoredLinear:
        """One linear by itself."""
        (stored,) = self.linears(LinearGroup((linear,), (linear.out_features,)))
        return stored

    def experts(self, experts: Experts) -> tuple[StoredLinear, StoredLinear] | None:
        """Gate and up, and down, of all experts, one behind the other; None where they are not
        quantized alike, or have no epilogue."""
        inputs = [self.linears(each.inputs, each.activation) for each in experts.experts]
        outputs = [self.linear(each.out) for each in experts.experts]
        gates, downs = [each[0] for each in inputs], outputs
        woven = all(len(each) == 1 and each[0].gate_up for each in inputs)
        kinds = {(each.bits, each.group_size, *each.tensors) for each in downs}
        if not woven or len(kinds) > 1 or downs[0].bits is None:
            return None
        if len({(each.bits, each.group_size, *each.tensors) for each in gates}) > 1:
            return None
        return _stacked(f"{experts.name}.gate_up", gates), _stacked(f"{experts.name}.down", downs)

    def _dense(
        self, linears: tuple[Linear, ...], places: tuple[int, ...]
    ) -> Iterator[StoredLinear]:
        """One matrix [out, in] of all, or a matrix [in, out] of each."""
        dtype, sources = self.form.dtype, self._sources
        if not self.form.merges_dense:
            for place, linear in zip(places, linears, strict=True):
                tensor, name = dense_tensor(linear), f"{linear.name}.weight_t"
                weight = sources.transposed(tensor, name, dtype)
                yield self._dense_linear((linear,), (place,), weight)
            return
        weights = [sources.dense(dense_tensor(linear), dtype) for linear in linears]
        yield self._dense_linear(
            linears, places, concatenated(f"{module_of(linears)}.weight", weights)
        )

    def _dense_linear(
        self, linears: tuple[Linear, ...], places: tuple[int, ...], weight: Weight
    ) -> StoredLinear:
        bias = bias_of(linears, self._sources, self.form.dtype)
        tensors = {"weight": replace(weight, read_share=linears[0].read_share)}
        tensors |= {} if bias is None else {"bias": bias}
        return StoredLinear(module_of(linears), linears, places, tensors)

    def table(self, embedding: Embedding) -> Weight:
        """The embedding's table."""
        if self.form.casts_embedding:
            return self._sources.dense(embedding.table, self.form.dtype)
        dtype = self._sources.embedding_dtype(embedding, self.form.dtype)
        return self._sources.dense(embedding.table, dtype)

    def rotation(
        self, name: str, rope: Rope, context: int, dtype: Dtype | None = None
    ) -> tuple[Weight, Weight]:
        """Cosine and sine, [context, rotary_size / 2]. dtype: None for the form's."""
        kind = dtype or self.form.tables_dtype
        tables = functools.cache(lambda: rope_tables(rope, context))

        def weight(part: str, place: int) -> Weight:
            def pieces() -> Iterator[Array]:
                yield tables()[place].astype(numpy_type(kind))

            shape = (context, rope.rotary_size // 2)
            return Weight(f"{name}.{part}", kind, shape, "tables", pieces)

        return weight("cosine", 0), weight("sine", 1)

    def inputs(self, embedding: Embedding) -> Iterator[Weight]:
        """Everything before the first block."""
        yield self.table(embedding)
        if embedding.projection is not None:
            yield from self.linear(embedding.projection).tensors.values()
        if embedding.positions is not None:
            yield self.tensor(embedding.positions)

    def block(self, block: Block) -> Iterator[StoredLinear | Weight]:
        """Linears, and the other tensors, of a block."""
        for sublayer in block.sublayers:
            for norm in (sublayer.norm, sublayer.post_norm, sublayer.end_norm):
                yield from () if norm is None else self.norm(norm)
            yield from self._mixer(sublayer.mixer)

    def outputs(self, output: Output) -> Iterator[StoredLinear | Weight]:
        """Everything behind the last block."""
        if output.norm is not None:
            yield from self.norm(output.norm)
        if output.projection is not None:
            yield self.linear(output.projection)
        yield self.linear(output.head)

    def _mixer(self, mixer: Mixer) -> Iterator[StoredLinear | Weight]:
        if isinstance(mixer, Attention):
            yield from self.linears(mixer.qkv)
            for norm in (mixer.q_norm, mixer.k_norm):
                yield from () if norm is None else self.norm(norm)
            yield self.linear(mixer.out)
        elif isinstance(mixer, Experts):
            yield self.linear(mixer.router)
            for expert in mixer.experts:
                yield from self._mixer(expert)
        else:
            yield from self.linears(mixer.inputs, mixer.activation)
            yield self.linear(mixer.out)


def _stacked(name: str, stored: Sequence[StoredLinear]) -> StoredLinear:
    """Linears of one size and format, one behind the other in each of their tensors."""
    tensors = {
        role: concatenated(f"{name}.{role}", [each.tensors[role] for each in stored])
        for role in stored[0].tensors
    }
    return replace(stored[0], name=name, tensors=tensors)
