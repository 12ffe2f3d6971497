"""From checkpoint tensors to weights: read, checked and converted in pieces.

No more than one piece, or one quantized linear of a block, is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from awq_edge.artifacts.input_files import open_plain
from awq_edge.errors import ModelError
from awq_edge.exporter.weights import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    UINT4,
    UINT8,
    Array,
    Part,
    Weight,
    pack_nibbles,
)
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.safetensors_files import TensorEntry
from awq_edge.model.w4a16 import NumberFormat, quantize

_PIECE_BYTES = 32 << 20  # of a piece while it is float32
_TRANSPOSED_BYTES = 256 << 20  # of a block of columns while it is float32
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


# Codes [out, in], scales [out, in / group], and zeros likewise or None for the middle code.
QuantizedWeights = tuple[Weight, Weight, Weight | None]


class Sources:
    """Makes weights of one checkpoint's tensors."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._shapes = checkpoint.decoder.weight_shapes()

    def dense(self, source: str, name: str, dtype: int, part: Part, offset: float = 0.0) -> Weight:
        """An unquantized tensor. source: full name in the checkpoint. dtype: to store it in.
        offset: what is added to its values.

        Evaluation raises ModelError for NaN, inf and what `dtype` cannot hold.
        """
        shape = self._entry(source).shape
        return Weight(name, dtype, shape, part, lambda: self._rows(source, dtype, offset))

    def transposed(self, source: str, name: str, dtype: int, part: Part) -> Weight:
        """The weight of `dense` for a matrix [out, in], stored as [in, out]."""
        rows, columns = self._entry(source).shape

        def pieces() -> Iterator[Array]:
            # A block of columns at a time; a matrix of more than one block is read repeatedly.
            step = max(1, _TRANSPOSED_BYTES // (4 * rows))
            for begin in range(0, columns, step):
                end = min(begin + step, columns)
                block = np.empty((end - begin, rows), _NUMPY_FLOATS[dtype])
                row = 0
                for piece in self._rows(source, dtype):
                    block[:, row : row + len(piece)] = piece[:, begin:end].T
                    row += len(piece)
                yield block

        return Weight(name, dtype, (columns, rows), part, pieces)

    def embedding_dtype(self, source: str, exact: bool) -> int:
        """The type to store the embedding in: float16 unless that would lose something.

        exact: float32 in the checkpoint stays float32. bfloat16 beyond float16's range becomes
        float32. Reads the tensor when it is bfloat16.
        """
        kind = self._entry(source).dtype
        if kind == "F16":
            return FLOAT16
        if kind in ("F32", "F64") and exact:
            return FLOAT32
        largest = max(float(np.abs(piece).max()) for piece in self._rows(source, FLOAT32))
        return FLOAT16 if largest <= float(np.finfo(np.float16).max) else FLOAT32

    def quantized(self, linear: str, part: Part) -> QuantizedWeights:
        """Codes [out, in], scales [out, in / group] and zeros of a quantized linear of the
        checkpoint, by full name.

        Codes and zeros are uint4 for up to 4 bits and uint8 for 8; zeros is None where all are
        2**(bits-1) by the layout. Scales are float16, or float32 where float16 would lose bits.
        """
        checkpoint = self._checkpoint
        layout, number_format = checkpoint.layout, checkpoint.linear_format(linear)
        assert layout is not None
        read, scales_name = checkpoint.files.read, layout.scales_name(linear)
        out_features, in_features = self._shapes[f"{linear}.weight"]
        grouped = (out_features, in_features // number_format.group_size)
        wide = number_format.bits == 8
        dtype = UINT8 if wide else UINT4
        exact = FLOAT16 if self._entry(scales_name).dtype == "F16" else FLOAT32

        def codes() -> Iterator[Array]:
            if wide:
                yield layout.codes(linear, number_format, read)
            else:
                yield from layout.nibbles(linear, number_format, read)

        def scales() -> Iterator[Array]:
            values = layout.scales(linear, read)
            self._require_finite(scales_name, values)
            yield np.ascontiguousarray(self._narrow(scales_name, values, exact))

        def zeros() -> Iterator[Array]:
            values = layout.zeros(linear, number_format, read)
            yield values if wide else pack_nibbles(values.reshape(-1))

        return (
            Weight(f"{linear}.weight", dtype, (out_features, in_features), part, codes),
            Weight(f"{linear}.scales", exact, grouped, part, scales),
            Weight(f"{linear}.zeros", dtype, grouped, part, zeros)
            if layout.stores_zeros(number_format)
            else None,
        )

    def rounded(
        self, source: str, name: str, number_format: NumberFormat, part: Part
    ) -> QuantizedWeights:
        """An unquantized matrix [out, in] rounded to nearest: codes, scales and zeros.

        Codes and zeros are uint4 for 4 bits and uint8 for 8; zeros is None for "symmetric".
        """
        out_features, in_features = self._entry(source).shape
        rounding = _Rounding(self, source, number_format)
        dtype = UINT8 if number_format.bits == 8 else UINT4
        grouped = (out_features, in_features // number_format.group_size)
        zeros = Weight(f"{name}.zeros", dtype, grouped, part, rounding.zeros)
        return (
            Weight(f"{name}.weight", dtype, (out_features, in_features), part, rounding.codes),
            Weight(f"{name}.scales", FLOAT16, grouped, part, rounding.scales),
            None if number_format.scheme == "symmetric" else zeros,
        )

    def _entry(self, source: str) -> TensorEntry:
        return self._checkpoint.files.entries[source]

    def _rows(self, source: str, dtype: int, offset: float = 0.0) -> Iterator[Array]:
        """The tensor, plus an offset, in pieces of whole rows, checked, in `dtype`."""
        for piece in self._read_rows(source):
            self._require_finite(source, piece)
            if offset:
                piece = piece.astype(np.float32) + np.float32(offset)
            yield self._narrow(source, piece, dtype)

    def _read_rows(self, source: str) -> Iterator[Array]:
        """Pieces of whole rows; bfloat16 as float32, other types as stored."""
        entry = self._entry(source)
        if entry.dtype not in _ITEM_BYTES:
            raise ModelError(
                f"{self._checkpoint.path}: weight '{source}' has dtype {entry.dtype}; supported: "
                f"{', '.join(_ITEM_BYTES)}"
            )
        stored = np.dtype({"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry.dtype])
        width = int(np.prod(entry.shape[1:], dtype=np.int64))
        step = max(1, _PIECE_BYTES // (4 * max(width, 1)))
        with open_plain(entry.file) as file:
            file.seek(entry.offset)
            for begin in range(0, entry.shape[0], step):
                rows = min(step, entry.shape[0] - begin)
                piece: Array = np.empty((rows, *entry.shape[1:]), stored)
                view = piece.reshape(-1).view(np.uint8).data
                while len(view):
                    count = file.readinto(view)
                    if not count:
                        raise ModelError(f"{entry.file} is truncated; copy or download it again")
                    view = view[count:]
                if entry.dtype == "BF16":
                    piece = (piece.astype(np.uint32) << 16).view(np.float32)
                yield piece

    def _require_finite(self, source: str, values: Array) -> None:
        if not np.isfinite(values).all():
            raise ModelError(
                f"{self._checkpoint.path}: weight '{source}' has NaN or inf; the file is damaged, "
                "or the model was saved after its training failed"
            )

    def _narrow(self, source: str, values: Array, dtype: int) -> Array:
        """Finite values in `dtype`. Raises ModelError when they do not fit."""
        with np.errstate(over="ignore"):
            narrow = values.astype(_NUMPY_FLOATS[dtype], copy=False)
        if narrow.dtype.itemsize < values.dtype.itemsize and not np.isfinite(narrow).all():
            raise ModelError(
                f"{self._checkpoint.path}: weight '{source}' has values up to "
                f"{float(np.abs(values).max()):.3g}, which {narrow.dtype} cannot hold; export with "
                "--activation-dtype bfloat16, or float32 for runtime onnxruntime"
            )
        return narrow


_NUMPY_FLOATS: dict[int, type[np.generic]] = {
    FLOAT16: np.float16,
    BFLOAT16: ml_dtypes.bfloat16,
    FLOAT32: np.float32,
}


class _Rounding:
    """One pass over an unquantized matrix; scales and zeros are kept from it, codes are not."""

    def __init__(self, sources: Sources, source: str, number_format: NumberFormat) -> None:
        self._sources = sources
        self._source = source
        self._format = number_format
        self._scales: list[Array] = []
        self._zeros: list[Array] = []

    def codes(self) -> Iterator[Array]:
        scales, zeros = [], []
        for rows in self._sources._rows(self._source, FLOAT32):
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
