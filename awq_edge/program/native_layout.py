"""Weights of TensorRT's DequantizeLinear and MatMul, from the logical layout.

Codes are signed numbers [in, out] without zero points, scales [in / group, out].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from awq_edge.errors import ModelError
from awq_edge.model.w4a16 import UInt8
from awq_edge.program.program import Linear
from awq_edge.program.sources import QuantizedWeights, Sources
from awq_edge.program.stored import StoredLinear, bias_of, module_of
from awq_edge.program.weights import (
    Array,
    Dtype,
    Weight,
    cast,
    concatenated,
    pack_nibbles,
    single_codes,
    unpack_nibbles,
)

_BLOCK_BYTES = 256 << 20  # of a block of transposed codes, one to a byte
_PIECE_BYTES = 32 << 20  # of what is written of it at a time


def native_linear(
    linears: Sequence[Linear], places: tuple[int, ...], sources: Sources, dtype: Dtype
) -> StoredLinear:
    """Linears of one format as one DequantizeLinear."""
    stored = linears[0].stored
    assert stored is not None
    name, bits = module_of(linears), stored.number_format.bits
    parts = [sources.quantized(linear) for linear in linears]
    bias = bias_of(linears, sources, dtype)
    return StoredLinear(
        name=name,
        linears=tuple(linears),
        places=places,
        tensors={
            "codes": transposed_codes(f"{name}.weight_t", parts, bits),
            "scales": _transposed_scales(f"{name}.scales_t", parts, dtype),
            **({} if bias is None else {"bias": bias}),
        },
        bits=8 if bits == 8 else 4,
        group_size=stored.number_format.group_size,
    )


def transposed_codes(name: str, parts: Sequence[QuantizedWeights], bits: int) -> Weight:
    """Codes [out, in] of linears one below the other as signed numbers [in, out], zero point 0.

    INT4 for up to 4 bits, two to a byte, the first in the low nibble; INT8 for 8. A block of
    channels is in memory while it is evaluated; a weight of more than one is read repeatedly.
    Evaluation raises ModelError for zero points that are not 2**(bits-1).
    """
    first, middle = parts[0][0], np.uint8(2 ** (bits - 1))
    columns, rows = first.shape[1], sum(codes.shape[0] for codes, _, _ in parts)
    wide = first.dtype == "uint8"

    def pieces() -> Iterator[Array]:
        for part in parts:
            _require_symmetric(part, int(middle))
        step = max(2, _BLOCK_BYTES // rows // 2 * 2)
        for begin in range(0, columns, step):
            block = _transposed_block(parts, begin, min(begin + step, columns), rows)
            block -= middle  # modulo 256
            step_within = max(2, _PIECE_BYTES // rows // 2 * 2)
            for start in range(0, len(block), step_within):
                signed = block[start : start + step_within]
                yield signed if wide else pack_nibbles((signed & 15).reshape(-1))

    dtype: Dtype = "int8" if wide else "int4"
    return replace(first, name=name, dtype=dtype, shape=(columns, rows), pieces=pieces)


def _transposed_block(parts: Sequence[QuantizedWeights], begin: int, end: int, rows: int) -> UInt8:
    """Channels begin..end of all rows, one code to a byte: uint8 [end - begin, rows]."""
    block, row = np.empty((end - begin, rows), np.uint8), 0
    for codes, _, _ in parts:
        columns = codes.shape[1]
        for piece in codes.pieces():
            if codes.dtype == "uint8":
                channels = piece.reshape(-1, columns)[:, begin:end]
            else:
                packed = piece.reshape(-1, columns // 2)[:, begin // 2 : (end + 1) // 2]
                channels = unpack_nibbles(packed, end - begin)
            block[:, row : row + len(channels)] = channels.T
            row += len(channels)
    return block


def _transposed_scales(name: str, parts: Sequence[QuantizedWeights], dtype: Dtype) -> Weight:
    """[out, in / group] as [in / group, out], in the activations' type."""
    scales = cast(concatenated(name, [part[1] for part in parts]), dtype)
    rows, columns = scales.shape
    return replace(
        scales,
        shape=(columns, rows),
        pieces=lambda: iter([np.ascontiguousarray(scales.array().T)]),
    )


def _require_symmetric(part: QuantizedWeights, middle: int) -> None:
    codes, _, zeros = part
    if zeros is not None and (single_codes(zeros).array() != middle).any():
        raise ModelError(
            f"{codes.name}: has zero points other than {middle}, though its checkpoint says "
            "symmetric; TensorRT's DequantizeLinear has none: export with --linear plugin"
        )
