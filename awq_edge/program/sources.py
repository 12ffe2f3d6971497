"""The origin of a program's weights: a checkpoint's files, or a model that is only planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from awq_edge.program.program import Embedding, Linear, Tensor
from awq_edge.program.weights import Array, Dtype, Weight, row_range, single_codes


class QuantizedWeights(NamedTuple):
    """A quantized linear in the logical layout.

    codes: [out, in], uint4 for up to 4 bits and uint8 for 8. scales: [out, in / group], float16, or
    float32 where float16 would lose bits. zeros: as codes, like scales; None: all 2**(bits-1).
    """

    codes: Weight
    scales: Weight
    zeros: Weight | None

    def rows(self, begin: int, end: int) -> QuantizedWeights:
        """Some of the outputs; zeros one to a byte."""
        zeros = None if self.zeros is None else single_codes(self.zeros)
        return QuantizedWeights(
            row_range(self.codes, begin, end),
            row_range(self.scales, begin, end),
            None if zeros is None else row_range(zeros, begin, end),
        )


class Sources(Protocol):
    """Makes weights of a program's tensors, lazily; evaluation raises ModelError for what the
    files have wrong."""

    def dense(
        self, tensor: Tensor, dtype: Dtype, *, offset: float = 0.0, factor: float = 1.0
    ) -> Weight:
        """(tensor + offset) * factor in `dtype`, under the tensor's name."""
        ...

    def transposed(self, tensor: Tensor, name: str, dtype: Dtype) -> Weight:
        """A matrix [out, in] as [in, out], under another name."""
        ...

    def quantized(self, linear: Linear) -> QuantizedWeights:
        """A linear that is stored quantized, or rounded to nearest here."""
        ...

    def embedding_dtype(self, embedding: Embedding, dtype: Dtype) -> Dtype:
        """The type that loses nothing of the table; float16 where that will do.

        dtype: of the activations.
        """
        ...


class PlannedSources:
    """The weights of a model whose files are not there: types and shapes, no values."""

    def dense(
        self, tensor: Tensor, dtype: Dtype, *, offset: float = 0.0, factor: float = 1.0
    ) -> Weight:
        return Weight(tensor.name, dtype, tensor.shape, tensor.part, _no_values)

    def transposed(self, tensor: Tensor, name: str, dtype: Dtype) -> Weight:
        return Weight(name, dtype, tensor.shape[::-1], tensor.part, _no_values)

    def quantized(self, linear: Linear) -> QuantizedWeights:
        return logical_weights(linear, "float16")

    def embedding_dtype(self, embedding: Embedding, dtype: Dtype) -> Dtype:
        return "float32" if embedding.exact and dtype == "float32" else "float16"


def logical_weights(linear: Linear, scales_dtype: Dtype) -> QuantizedWeights:
    """The logical layout of a quantized linear: names, types and shapes, no values."""
    assert linear.stored is not None, linear.name
    number_format, name = linear.stored.number_format, linear.name
    rows, columns, part, share = (
        linear.out_features,
        linear.in_features,
        linear.part,
        linear.read_share,
    )
    dtype: Dtype = "uint8" if number_format.bits == 8 else "uint4"
    grouped = (rows, columns // number_format.group_size)
    zeros = Weight(f"{name}.zeros", dtype, grouped, part, _no_values, share)
    return QuantizedWeights(
        Weight(f"{name}.weight", dtype, (rows, columns), part, _no_values, share),
        Weight(f"{name}.scales", scales_dtype, grouped, part, _no_values, share),
        zeros if linear.stored.has_zeros else None,
    )


def _no_values() -> Iterator[Array]:
    raise AssertionError("a planned weight has no values")
