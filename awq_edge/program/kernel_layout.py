"""Weights of awq_edge_w4a16_linear, from the logical layout.

Tiles are independent of each other, so a weight is packed some rows at a time:

    codes of the parts ─ rows of a slab ─ pack, or pack_gate_up ─ qweight  (scales, zeros are kept
                                                                            until they are written)
`awq_edge/kernels/packing.py` has the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from awq_edge.errors import ModelError
from awq_edge.kernels.interface import BLOCK_CHANNELS, TILE_ROWS
from awq_edge.kernels.packing import PackedWeight, pack, pack_gate_up
from awq_edge.model.w4a16 import QuantizedWeight
from awq_edge.program.program import Linear
from awq_edge.program.sources import QuantizedWeights, Sources
from awq_edge.program.stored import StoredLinear, bias_of, module_of
from awq_edge.program.weights import Array, Dtype, Pieces, Weight, single_codes, unpack_nibbles

_SLAB_BYTES = 4 << 20  # of a slab's codes, one to a byte; packing them takes some ten times as much
# Rounding a scale to float16 loses 2**-11 of it. More is lost of those below its normal numbers.
_LARGEST_SCALE_ERROR = 2.0**-8


def kernel_bits(bits: int) -> int:
    """Bits of a code's container: 3, 4 or 8."""
    return 3 if bits == 2 else bits


def kernel_linear(
    linears: Sequence[Linear],
    places: tuple[int, ...],
    sources: Sources,
    dtype: Dtype,
    *,
    gate_up: bool = False,
) -> StoredLinear:
    """Linears of one format as one weight for the kernels. gate_up: woven, for the epilogue; one
    linear is gate and up fused."""
    stored = linears[0].stored
    assert stored is not None
    name, bits = module_of(linears), stored.number_format.bits
    parts = [sources.quantized(linear) for linear in linears]
    if gate_up and len(parts) == 1:  # fused in the checkpoint: gate's rows, then up's
        rows = linears[0].out_features
        parts = [parts[0].rows(0, rows // 2), parts[0].rows(rows // 2, rows)]
    bias = bias_of(linears, sources, dtype)
    return StoredLinear(
        name=name,
        linears=tuple(linears),
        places=places,
        tensors=packed_tensors(name, parts, bits, gate_up=gate_up)
        | ({} if bias is None else {"bias": bias}),
        bits=kernel_bits(bits),
        group_size=stored.number_format.group_size,
        gate_up=gate_up,
    )


def packed_tensors(
    name: str, parts: Sequence[QuantizedWeights], bits: int, *, gate_up: bool = False
) -> dict[str, Weight]:
    """qweight, scales and, unless all are in the middle, zeros of quantized linears of one input.

    name: of the module, before ".qweight". parts: one below the other, or a gate and an up
    projection, which are woven. bits: of their codes; 2-bit codes ride in containers of 3.
    Evaluation raises ModelError for scales that float16 cannot hold.
    """
    return _Packing(name, parts, bits, gate_up).tensors()


class _Packing:
    """One pass over the codes packs everything; scales and zeros wait until they are asked for."""

    def __init__(
        self, name: str, parts: Sequence[QuantizedWeights], bits: int, gate_up: bool
    ) -> None:
        codes, scales, _ = parts[0]
        self._name = name
        self._parts = parts
        self._bits = bits
        self._container = kernel_bits(bits)
        self._gate_up = gate_up
        self._in_features = codes.shape[1]
        self._group_size = self._in_features // scales.shape[1]
        self._out_features = sum(part.codes.shape[0] for part in parts)
        # Absent, zeros would be the container's middle.
        self._has_zeros = any(part.zeros is not None for part in parts) or self._container != bits
        self._packed: list[PackedWeight] = []  # without codes

    def tensors(self) -> dict[str, Weight]:
        first = self._parts[0].codes
        rows = self._out_features
        tiles = -(-rows // 2 // 8) if self._gate_up else -(-rows // TILE_ROWS)
        blocks = -(-self._in_features // BLOCK_CHANNELS)
        groups = blocks * BLOCK_CHANNELS // self._group_size
        words = 4 if self._container == 8 else 2

        def tensor(role: str, dtype: Dtype, shape: tuple[int, ...], pieces: Pieces) -> Weight:
            name = f"{self._name}.{role}"
            return Weight(name, dtype, shape, first.part, pieces, first.read_share)

        shape = (tiles, blocks, 64 * self._container)
        tensors = {
            "qweight": tensor("qweight", "int32", shape, self._qweight),
            "scales": tensor("scales", "float16", (tiles, groups, 8, 2), self._scales),
        }
        if self._has_zeros:
            tensors["zeros"] = tensor("zeros", "int32", (tiles, groups, words), self._zeros)
        return tensors

    def _qweight(self) -> Iterator[Array]:
        packed = []
        for slab in self._slabs():
            whole = pack_gate_up(*slab) if self._gate_up else pack(*slab)
            yield whole.qweight
            packed.append(replace(whole, qweight=whole.qweight[:0].copy()))
        self._packed = packed

    def _scales(self) -> Iterator[Array]:
        for packed in self._taken(last=not self._has_zeros):
            yield packed.scales

    def _zeros(self) -> Iterator[Array]:
        middle = 2 ** (self._container - 1)
        octet = middle if self._container == 8 else middle | middle << 4
        for packed in self._taken(last=True):
            if packed.zeros is not None:
                yield packed.zeros
                continue
            # A slab whose zeros are all in the middle.
            shape = (*packed.scales.shape[:2], 16 if self._container == 8 else 8)
            yield np.full(shape, octet, np.uint8).view(np.int32)

    def _taken(self, last: bool) -> list[PackedWeight]:
        """Weights that the pass over the codes left; forgotten once asked for the `last` time."""
        if not self._packed:
            for _ in self._qweight():
                pass
        packed = self._packed
        if last:
            self._packed = []
        return packed

    def _slabs(self) -> Iterator[list[QuantizedWeight]]:
        """Whole tiles of rows: one weight, or as many of gate and up."""
        rows = max(TILE_ROWS, _SLAB_BYTES // self._in_features // TILE_ROWS * TILE_ROWS)
        if self._gate_up:
            streams = (_regrouped(_rows(part, self._bits), rows // 2) for part in self._parts)
            for pair in zip(*streams, strict=True):
                yield [self._contained(each) for each in pair]
            return
        pieces = (piece for part in self._parts for piece in _rows(part, self._bits))
        for slab in _regrouped(pieces, rows):
            yield [self._contained(slab)]

    def _contained(self, weight: QuantizedWeight) -> QuantizedWeight:
        """The weight in the container's bits, scales in float16."""
        scales = weight.scales
        with np.errstate(over="ignore"):
            narrow = scales.astype(np.float16)
        if (np.abs(narrow - scales.astype(np.float32)) > _LARGEST_SCALE_ERROR * scales).any():
            raise ModelError(
                f"{self._name}: scales from {float(scales.min()):.3g} to {float(scales.max()):.3g} "
                "do not fit float16, in which the CUDA kernels have them; quantize the original "
                "model again, or export with --runtime onnxruntime"
            )
        return QuantizedWeight(weight.codes, narrow, weight.zeros, self._container)


def _rows(part: QuantizedWeights, bits: int) -> Iterator[QuantizedWeight]:
    """A linear in pieces of whole rows as they come; codes and zeros one to a byte."""
    codes, scales, zeros = part
    columns = codes.shape[1]
    all_scales = scales.array()
    if zeros is None:
        all_zeros = np.full(all_scales.shape, 2 ** (bits - 1), np.uint8)
    else:
        all_zeros = single_codes(zeros).array()
    begin = 0
    for piece in codes.pieces():
        if codes.dtype == "uint8":
            single = piece.reshape(-1, columns)
        else:
            single = unpack_nibbles(piece.reshape(-1, columns // 2), columns)
        end = begin + len(single)
        yield QuantizedWeight(single, all_scales[begin:end], all_zeros[begin:end], bits)
        begin = end


def _regrouped(pieces: Iterator[QuantizedWeight], rows: int) -> Iterator[QuantizedWeight]:
    """Weights one below the other, `rows` rows at a time: a linear may end inside a tile."""
    held: list[QuantizedWeight] = []
    count = 0
    for piece in pieces:
        while len(piece.codes):
            room = rows - count
            held.append(_slice(piece, 0, room))
            count += len(held[-1].codes)
            piece = _slice(piece, room, None)
            if count == rows:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _slice(weight: QuantizedWeight, begin: int, end: int | None) -> QuantizedWeight:
    return QuantizedWeight(
        weight.codes[begin:end], weight.scales[begin:end], weight.zeros[begin:end], weight.bits
    )


def _joined(parts: list[QuantizedWeight]) -> QuantizedWeight:
    if len(parts) == 1:
        return parts[0]
    return QuantizedWeight(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
        parts[0].bits,
    )
