"""Weights in the forms of runtimes: descriptions that are evaluated when they are written.

A `Weight` knows its type and shape, and can produce its bytes in pieces of some 32 MB. Storage
forms derive new weights from old ones (`cast`, `reinterpreted`, `concatenated`) without evaluating
any.

Pieces are arrays whose bytes, one after the other, are the tensor in ONNX's raw encoding: C order,
little endian, 4-bit elements two to a byte, the first in the low nibble.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from awq_edge.program.program import Part

Array = npt.NDArray[Any]
Pieces = Callable[[], Iterator[Array]]
Dtype = Literal[
    "float16", "bfloat16", "float32", "int32", "uint8", "int8", "uint4", "int4"
]  # of ONNX, NumPy and the cuda program
BITS: dict[Dtype, int] = {
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "int32": 32,
    "uint8": 8,
    "int8": 8,
    "uint4": 4,
    "int4": 4,
}
# Of these a token reads one row.
_READ_BY_ROW = ("embedding", "tables")


def _item(dtype: Dtype) -> int:
    """Bytes of an element of a piece; of two 4-bit elements."""
    return max(1, BITS[dtype] // 8)


def numpy_type(dtype: Dtype) -> Any:
    """The NumPy type of pieces; bfloat16 needs the [host] extra."""
    if dtype == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype("uint8" if BITS[dtype] == 4 else dtype).type


@dataclass(frozen=True)
class Weight:
    """One constant. pieces: see the module. read_share: the share of tokens whose computation reads
    it; below 1 in experts."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    part: Part
    pieces: Pieces
    read_share: float = 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the raw encoding."""
        return (math.prod(self.shape) * BITS[self.dtype] + 7) // 8

    def array(self) -> Array:
        """All of it, evaluated; 4-bit elements as they are packed, flat."""
        flat = np.concatenate([piece.reshape(-1) for piece in self.pieces()])
        return flat if BITS[self.dtype] == 4 else flat.reshape(self.shape)


def reinterpreted(weight: Weight, dtype: Dtype, shape: tuple[int, ...]) -> Weight:
    """The same bytes as another type and shape."""
    result = replace(weight, dtype=dtype, shape=shape)
    assert result.nbytes == weight.nbytes, (weight, dtype, shape)
    return result


def cast(weight: Weight, dtype: Dtype) -> Weight:
    """Floating-point values in another floating-point type."""
    if weight.dtype == dtype:
        return weight

    def pieces() -> Iterator[Array]:
        target = numpy_type(dtype)
        for piece in weight.pieces():
            yield piece.astype(target)

    return replace(weight, dtype=dtype, pieces=pieces)


def concatenated(name: str, weights: Sequence[Weight]) -> Weight:
    """Weights one below the other, along the first axis."""
    first = weights[0]
    assert all(w.dtype == first.dtype and w.shape[1:] == first.shape[1:] for w in weights)

    def pieces() -> Iterator[Array]:
        for weight in weights:
            yield from weight.pieces()

    rows = sum(w.shape[0] for w in weights)
    return replace(first, name=name, shape=(rows, *first.shape[1:]), pieces=pieces)


def row_range(weight: Weight, begin: int, end: int) -> Weight:
    """Rows [begin, end) of a weight whose pieces are whole rows."""
    columns = math.prod(weight.shape[1:]) * BITS[weight.dtype] // 8 // _item(weight.dtype)

    def pieces() -> Iterator[Array]:
        row = 0
        for piece in weight.pieces():
            rows = piece.reshape(-1, columns)
            yield rows[max(0, begin - row) : max(0, end - row)]
            row += len(rows)

    return replace(weight, shape=(end - begin, *weight.shape[1:]), pieces=pieces)


def of_array(name: str, array: Array, dtype: Dtype, part: Part) -> Weight:
    """A small array that exists already."""
    return Weight(name, dtype, array.shape, part, lambda: iter([array.astype(numpy_type(dtype))]))


def pack_nibbles(codes: Array) -> Array:
    """4-bit codes two to a byte along the last axis, which is padded with 0 to an even length.

    codes: uint8 [..., n]. Returns uint8 [..., ceil(n / 2)], the first code in the low nibble.
    """
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: Array = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed


def unpack_nibbles(packed: Array, count: int) -> Array:
    """The inverse of `pack_nibbles`: uint8 [..., count]."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :count]


def single_codes(weight: Weight) -> Weight:
    """uint4 elements [rows, n] one to a byte: uint8. Only for small tensors."""
    if weight.dtype == "uint8":
        return weight
    rows, columns = weight.shape

    def pieces() -> Iterator[Array]:
        yield unpack_nibbles(weight.array(), rows * columns).reshape(rows, columns)

    return replace(weight, dtype="uint8", pieces=pieces)


def rows_packed(weight: Weight, bits: int) -> Weight:
    """Codes one to a byte [rows, n] as `bits` of a byte, each row in whole bytes, the first code
    lowest: uint8 [rows, ceil(n * bits / 8)]. bits: 2, 4 or 8."""
    if bits == 8:
        return weight
    rows, columns = weight.shape
    lanes = 8 // bits

    def pieces() -> Iterator[Array]:
        for piece in weight.pieces():
            padded = np.pad(piece, ((0, 0), (0, -columns % lanes)))
            packed = padded[:, 0::lanes].copy()
            for lane in range(1, lanes):
                packed |= padded[:, lane::lanes] << (bits * lane)
            yield packed

    return replace(weight, shape=(rows, -(-columns // lanes)), pieces=pieces)


def two_bits(weight: Weight) -> Weight:
    """uint4 elements [rows, n] below 4 as two bits each: uint8 [rows, n / 4], the first lowest.
    n a multiple of 4."""
    rows, columns = weight.shape

    def pieces() -> Iterator[Array]:
        for piece in weight.pieces():
            singles = piece | (piece >> 2)  # within each byte: code 2j + 1 beside code 2j
            pairs = (singles & 15).reshape(-1, 2)
            yield pairs[:, 0] | (pairs[:, 1] << 4)

    return replace(weight, dtype="uint8", shape=(rows, columns // 4), pieces=pieces)


def columns_repeated(weight: Weight, times: int) -> Weight:
    """Each column [rows, n] `times` times in a row: [rows, n * times]."""
    if times == 1:
        return weight
    rows, columns = weight.shape

    def pieces() -> Iterator[Array]:
        for piece in weight.pieces():
            yield piece.repeat(times, axis=1)

    return replace(weight, shape=(rows, columns * times), pieces=pieces)


def filled(name: str, value: int, shape: tuple[int, int], part: Part) -> Weight:
    """uint8 [rows, n], the same everywhere."""
    return Weight(name, "uint8", shape, part, lambda: iter([np.full(shape, value, np.uint8)]))


class Sized(Protocol):
    """nbytes: in the weight file. shape: as stored. read_share: see `Weight`."""

    @property
    def part(self) -> Part: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def read_share(self) -> float: ...


def part_bytes(weights: Iterable[Sized]) -> dict[str, int]:
    """Bytes by part of the model; padding between weights in a file is not counted."""
    parts: dict[str, int] = {"embedding": 0, "blocks": 0, "lm_head": 0, "tables": 0}
    for weight in weights:
        parts[weight.part] += weight.nbytes
    return parts


def bytes_per_token(weights: Iterable[Sized]) -> int:
    """Bytes that decoding one token reads: one row of embedding and rotary tables, and the experts
    that a token is sent to."""
    return round(sum(map(mean_bytes_per_token, weights)))


def mean_bytes_per_token(weight: Sized) -> float:
    """The share of one weight in `bytes_per_token`, not rounded."""
    rows = weight.shape[0] if weight.part in _READ_BY_ROW else 1
    return weight.nbytes // rows * weight.read_share
