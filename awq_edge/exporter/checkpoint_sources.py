"""From checkpoint tensors to weights: read, checked and converted in pieces.

No more than one piece, or one quantized linear of a block, is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from awq_edge.artifacts.input_files import open_plain
from awq_edge.errors import ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.safetensors_files import TensorEntry
from awq_edge.model.w4a16 import NumberFormat, quantize
from awq_edge.program.program import Embedding, Linear, Tensor
from awq_edge.program.sources import QuantizedWeights, logical_weights
from awq_edge.program.weights import Array, Dtype, Weight, numpy_type, pack_nibbles

_PIECE_BYTES = 32 << 20  # of a piece while it is float32
_TRANSPOSED_BYTES = 256 << 20  # of a block of columns while it is float32
_STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class CheckpointSources:
    """The weights of one checkpoint's tensors; see `awq_edge.program.sources.Sources`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def dense(
        self, tensor: Tensor, dtype: Dtype, *, offset: float = 0.0, factor: float = 1.0
    ) -> Weight:
        def pieces() -> Iterator[Array]:
            return self._rows(tensor.name, dtype, offset, factor)

        return Weight(tensor.name, dtype, tensor.shape, tensor.part, pieces)

    def transposed(self, tensor: Tensor, name: str, dtype: Dtype) -> Weight:
        rows, columns = tensor.shape

        def pieces() -> Iterator[Array]:
            # A block of columns at a time; a matrix of more than one block is read repeatedly.
            step = max(1, _TRANSPOSED_BYTES // (4 * rows))
            for begin in range(0, columns, step):
                end = min(begin + step, columns)
                block = np.empty((end - begin, rows), numpy_type(dtype))
                row = 0
                for piece in self._rows(tensor.name, dtype):
                    block[:, row : row + len(piece)] = piece[:, begin:end].T
                    row += len(piece)
                yield block

        return Weight(name, dtype, (columns, rows), tensor.part, pieces)

    def embedding_dtype(self, embedding: Embedding, dtype: Dtype) -> Dtype:
        """float16 unless that would lose something. float32 in an unquantized checkpoint stays
        float32 under float32 activations; bfloat16 beyond float16's range becomes float32. Reads
        the tensor when it is bfloat16."""
        name = embedding.table.name
        kind = self._entry(name).dtype
        if kind == "F16":
            return "float16"
        is_exact = self._checkpoint.quantization is None and dtype == "float32"
        if kind in ("F32", "F64") and is_exact:
            return "float32"
        largest = max(float(np.abs(piece).max()) for piece in self._rows(name, "float32"))
        return "float16" if largest <= float(np.finfo(np.float16).max) else "float32"

    def quantized(self, linear: Linear) -> QuantizedWeights:
        return self._rounded(linear) if linear.is_rounded else self._stored(linear)

    def _stored(self, linear: Linear) -> QuantizedWeights:
        """A linear that the checkpoint has quantized."""
        checkpoint, name = self._checkpoint, linear.name
        layout, number_format = checkpoint.layout, checkpoint.linear_format(name)
        assert layout is not None
        read, scales_name = checkpoint.files.read, layout.scales_name(name)
        wide = number_format.bits == 8
        exact: Dtype = "float16" if self._entry(scales_name).dtype == "F16" else "float32"

        def codes() -> Iterator[Array]:
            if wide:
                yield layout.codes(name, number_format, read)
            else:
                yield from layout.nibbles(name, number_format, read)

        def scales() -> Iterator[Array]:
            values = layout.scales(name, read)
            self._require_finite(scales_name, values)
            yield np.ascontiguousarray(self._narrow(scales_name, values, exact))

        def zeros() -> Iterator[Array]:
            values = layout.zeros(name, number_format, read)
            yield values if wide else pack_nibbles(values.reshape(-1))

        logical = logical_weights(linear, exact)
        return QuantizedWeights(
            replace(logical.codes, pieces=codes),
            replace(logical.scales, pieces=scales),
            None if logical.zeros is None else replace(logical.zeros, pieces=zeros),
        )

    def _rounded(self, linear: Linear) -> QuantizedWeights:
        """An unquantized matrix, rounded to nearest."""
        logical = logical_weights(linear, "float16")
        assert linear.stored is not None
        rounding = _Rounding(self, linear.source, linear.stored.number_format)
        return QuantizedWeights(
            replace(logical.codes, pieces=rounding.codes),
            replace(logical.scales, pieces=rounding.scales),
            None if logical.zeros is None else replace(logical.zeros, pieces=rounding.zeros),
        )

    def _entry(self, name: str) -> TensorEntry:
        return self._checkpoint.files.entries[name]

    def _rows(
        self, name: str, dtype: Dtype, offset: float = 0.0, factor: float = 1.0
    ) -> Iterator[Array]:
        """(the tensor + offset) * factor in pieces of whole rows, checked, in `dtype`."""
        for piece in self._read_rows(name):
            self._require_finite(name, piece)
            if offset or factor != 1.0:
                piece = (piece.astype(np.float32) + np.float32(offset)) * np.float32(factor)
            yield self._narrow(name, piece, dtype)

    def _read_rows(self, name: str) -> Iterator[Array]:
        """Pieces of whole rows; bfloat16 as float32, other types as stored."""
        entry = self._entry(name)
        if entry.dtype not in _STORED:
            raise ModelError(
                f"{self._checkpoint.path}: weight '{name}' has dtype {entry.dtype}; supported: "
                f"{', '.join(_STORED)}"
            )
        width = int(np.prod(entry.shape[1:], dtype=np.int64))
        step = max(1, _PIECE_BYTES // (4 * max(width, 1)))
        with open_plain(entry.file) as file:
            file.seek(entry.offset)
            for begin in range(0, entry.shape[0], step):
                rows = min(step, entry.shape[0] - begin)
                piece: Array = np.empty((rows, *entry.shape[1:]), _STORED[entry.dtype])
                view = piece.reshape(-1).view(np.uint8).data
                while len(view):
                    count = file.readinto(view)
                    if not count:
                        raise ModelError(f"{entry.file} is truncated; copy or download it again")
                    view = view[count:]
                if entry.dtype == "BF16":
                    piece = (piece.astype(np.uint32) << 16).view(np.float32)
                yield piece

    def _require_finite(self, name: str, values: Array) -> None:
        if not np.isfinite(values).all():
            raise ModelError(
                f"{self._checkpoint.path}: weight '{name}' has NaN or inf; the file is damaged, "
                "or the model was saved after its training failed"
            )

    def _narrow(self, name: str, values: Array, dtype: Dtype) -> Array:
        """Finite values in `dtype`. Raises ModelError when they do not fit."""
        with np.errstate(over="ignore"):
            narrow = values.astype(numpy_type(dtype), copy=False)
        if narrow.dtype.itemsize < values.dtype.itemsize and not np.isfinite(narrow).all():
            raise ModelError(
                f"{self._checkpoint.path}: weight '{name}' has values up to "
                f"{float(np.abs(values).max()):.3g}, which {narrow.dtype} cannot hold; export with "
                "--activation-dtype bfloat16, or float32 for runtime onnxruntime"
            )
        return narrow


class _Rounding:
    """One pass over an unquantized matrix; scales and zeros are kept from it, codes are not."""

    def __init__(self, sources: CheckpointSources, name: str, number_format: NumberFormat) -> None:
        self._sources = sources
        self._name = name
        self._format = number_format
        self._scales: list[Array] = []
        self._zeros: list[Array] = []

    def codes(self) -> Iterator[Array]:
        scales, zeros = [], []
        for rows in self._sources._rows(self._name, "float32"):
            wanted = self._format
            rounded = quantize(rows, wanted.bits, wanted.group_size, wanted.scheme)
            scales.append(rounded.scales)
            zeros.append(rounded.zeros)
            yield rounded.codes if wanted.bits == 8 else pack_nibbles(rounded.codes)
        self._scales, self._zeros = scales, zeros

    def scales(self) -> Iterator[Array]:
        self._require_pass()
        yield from self._scales

    def zeros(self) -> Iterator[Array]:
        self._require_pass()
        zeros = np.concatenate(self._zeros)
        yield zeros if self._format.bits == 8 else pack_nibbles(zeros.reshape(-1))

    def _require_pass(self) -> None:
        if not self._scales:
            for _ in self.codes():
                pass
