"""Weights in the layout of the kernels, version 1, and back. NumPy.

`plugins/kernels/w4a16_layout.h` draws the layout and reads it. A tile is 16 rows (output channels),
a block 128 input channels of them; what is missing to whole tiles and blocks is filled with codes
equal to their zero point, which stand for 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ConfigError
from awq_edge.kernels.interface import BITS, BLOCK_CHANNELS, GROUP_SIZES, TILE_ROWS
from awq_edge.model.w4a16 import QuantizedWeight, UInt8

_LANES = 32

Int32 = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight as the kernels read it.

    qweight: int32 [tiles, blocks, 64 * bits].
    scales: float16 [tiles, blocks * 128 / group_size, 8, 2], of rows i and i + 8 of a tile.
    zeros: int32 [tiles, blocks * 128 / group_size, 4 at 8 bits, else 2], or None where all are
    2**(bits-1).
    paired: rows of a gate and of an up projection alternate, eight by eight; see `pack_gate_up`.
    """

    qweight: Int32
    scales: npt.NDArray[np.float16]
    zeros: Int32 | None
    bits: int
    group_size: int
    in_features: int
    out_features: int
    paired: bool = False


def obstacle(bits: int, group_size: int, in_features: int) -> str | None:
    """The reason why the kernels cannot take such a linear; None if they can."""
    if bits not in BITS:
        return f"bits {bits} is not one of {', '.join(map(str, BITS))}"
    if group_size not in GROUP_SIZES:
        return f"group_size {group_size} is not one of {', '.join(map(str, GROUP_SIZES))}"
    if in_features % group_size:
        return f"in_features {in_features} is not a multiple of group_size {group_size}"
    return None


def pack(weight: QuantizedWeight, *, keep_zeros: bool = False) -> PackedWeight:
    """A weight in the layout of the kernels.

    keep_zeros: zero points are stored even where all are 2**(bits-1), as experts need that stand
    behind others which store theirs.

    Raises ConfigError for bits, groups or scales that the kernels do not take.
    """
    return _pack(weight, weight.codes.shape[0], paired=False, keep_zeros=keep_zeros)


def pack_gate_up(
    gate: QuantizedWeight, up: QuantizedWeight, *, keep_zeros: bool = False
) -> PackedWeight:
    """Two weights [n, k] as one of 2 n rows, for an epilogue activation(gate) * up.

    Rows 0..7 of tile i are rows 8 i.. of gate, rows 8..15 the same of up, so that one thread has
    both factors of an output. Raises ConfigError as `pack`, and where the two differ in format.
    """
    if gate.codes.shape != up.codes.shape or (gate.bits, gate.group_size) != (
        up.bits,
        up.group_size,
    ):
        raise ConfigError(
            f"gate ({gate.bits} bits, group {gate.group_size}, {gate.codes.shape}) and up "
            f"({up.bits} bits, group {up.group_size}, {up.codes.shape}) differ; they cannot share "
            "one kernel"
        )
    rows = len(gate.codes)
    parts = [_rows_to(each, -(-rows // 8) * 8) for each in (gate, up)]
    interleaved = QuantizedWeight(
        codes=_weave([p.codes for p in parts]),
        scales=_weave([p.scales for p in parts]),
        zeros=_weave([p.zeros for p in parts]),
        bits=gate.bits,
    )
    return _pack(interleaved, 2 * rows, paired=True, keep_zeros=keep_zeros)


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """The weight that was packed: gate above up where two were. The inverse of the above."""
    tiles, blocks = packed.qweight.shape[:2]
    lanes = _without_vectors(packed.qweight.view(np.uint32), packed.bits)
    fragments = _codes_of_words(lanes, packed.bits)  # [tiles, blocks, g, t, h, s1, s0, r1, r0, e]
    codes = fragments.transpose(0, 8, 2, 1, 4, 5, 3, 6, 7, 9)
    rows = tiles * TILE_ROWS
    codes = codes.reshape(rows, blocks * BLOCK_CHANNELS)[:, : packed.in_features]
    groups = packed.in_features // packed.group_size
    scales = packed.scales.transpose(0, 3, 2, 1).reshape(rows, -1)[:, :groups]
    if packed.zeros is None:
        zeros = np.full(scales.shape, 2 ** (packed.bits - 1), np.uint8)
    else:
        zeros = _unpack_zeros(packed.zeros, packed.bits).transpose(0, 2, 1)
        zeros = zeros.reshape(rows, -1)[:, :groups]
    if packed.paired:
        codes, scales, zeros = (_unweave(each) for each in (codes, scales, zeros))
        keep = np.r_[: packed.out_features // 2]
        keep = np.concatenate([keep, keep + rows // 2])
    else:
        keep = np.r_[: packed.out_features]
    return QuantizedWeight(
        codes=np.ascontiguousarray(codes[keep]),
        scales=np.ascontiguousarray(scales[keep]),
        zeros=np.ascontiguousarray(zeros[keep]),
        bits=packed.bits,
    )


def _pack(
    weight: QuantizedWeight, out_features: int, *, paired: bool, keep_zeros: bool
) -> PackedWeight:
    rows, in_features = weight.codes.shape
    bits, group_size = weight.bits, weight.group_size
    reason = obstacle(bits, group_size, in_features)
    if reason is None and weight.scales.dtype != np.float16:
        reason = f"scales are {weight.scales.dtype}, not float16"
    if reason is not None:
        raise ConfigError(f"the CUDA kernels cannot take this weight: {reason}")
    whole = _rows_to(weight, -(-rows // TILE_ROWS) * TILE_ROWS)
    missing = -in_features % BLOCK_CHANNELS
    columns = [(0, 0), (0, missing)]
    groups = [(0, 0), (0, missing // group_size)]
    middle = 2 ** (bits - 1)
    codes = np.pad(whole.codes, columns, constant_values=middle)
    scales = np.pad(whole.scales, groups)
    zeros = np.pad(whole.zeros, groups, constant_values=middle)
    tiles, blocks = len(codes) // TILE_ROWS, codes.shape[1] // BLOCK_CHANNELS
    # Rows are (r0, g), channels (h, s1, t, s0, r1, e).
    fragments = codes.reshape(tiles, 2, 8, blocks, 2, 2, 4, 2, 2, 2)
    words = _words_of_codes(fragments.transpose(0, 3, 2, 6, 4, 5, 7, 8, 1, 9), bits)
    by_pair = (0, 3, 2, 1)  # [tiles, r0, g, groups] -> [tiles, groups, g, r0]
    packed_scales = scales.reshape(tiles, 2, 8, -1).transpose(by_pair)
    symmetric = not keep_zeros and bool((zeros == middle).all())
    return PackedWeight(
        qweight=_with_vectors(words, bits).view(np.int32),
        scales=np.ascontiguousarray(packed_scales),
        zeros=None if symmetric else _pack_zeros(zeros.reshape(tiles, 2, 8, -1), bits),
        bits=bits,
        group_size=group_size,
        in_features=in_features,
        out_features=out_features,
        paired=paired,
    )


def _words_of_codes(fragments: UInt8, bits: int) -> Words:
    """Codes [tiles, blocks, g, t, h, s1, s0, r1, r0, e] -> words [tiles, blocks, lanes, 2 * bits].

    The drawing is in w4a16_layout.h.
    """
    tiles, blocks = fragments.shape[:2]
    pairs = fragments.reshape(tiles, blocks, _LANES, 2, 16, 2).astype(np.uint32)  # h, pair, e
    if bits == 8:
        values = pairs.reshape(tiles, blocks, _LANES, 16, 4)  # word, byte
        return _or(values << np.arange(0, 32, 8, dtype=np.uint32))
    both = pairs[..., 0] | pairs[..., 1] << np.uint32(16)  # [..., h, pair]
    if bits == 4:
        steps = both.reshape(tiles, blocks, _LANES, 8, 4)
        return _or(steps << np.arange(0, 16, 4, dtype=np.uint32))
    first = both[..., :15].reshape(tiles, blocks, _LANES, 2, 3, 5)
    words = _or(first << np.arange(0, 15, 3, dtype=np.uint32))  # [..., h, u]
    last = both[..., 15, None] >> np.arange(3, dtype=np.uint32) & np.uint32(0x00010001)
    words |= last << np.uint32(15)
    return words.reshape(tiles, blocks, _LANES, 6)


def _codes_of_words(words: Words, bits: int) -> UInt8:
    """The inverse of `_words_of_codes`."""
    tiles, blocks = words.shape[:2]
    if bits == 8:
        values = words[..., None] >> np.arange(0, 32, 8, dtype=np.uint32) & np.uint32(0xFF)
    else:
        if bits == 4:
            pairs = words[..., None] >> np.arange(0, 16, 4, dtype=np.uint32)
        else:
            halves = words.reshape(tiles, blocks, _LANES, 2, 3)
            first = halves[..., None] >> np.arange(0, 15, 3, dtype=np.uint32)
            last = (halves >> np.uint32(15) & np.uint32(0x00010001)) << np.arange(
                3, dtype=np.uint32
            )
            shape = (tiles, blocks, _LANES, 2)
            pairs = np.concatenate([first.reshape(*shape, 15), _or(last)[..., None]], axis=-1)
        mask = np.uint32(2**bits - 1)
        values = np.stack([pairs & mask, pairs >> np.uint32(16) & mask], axis=-1)
    return values.astype(np.uint8).reshape(tiles, blocks, 8, 4, 2, 2, 2, 2, 2, 2)


def _with_vectors(words: Words, bits: int) -> Words:
    """[tiles, blocks, lanes, words] -> [tiles, blocks, 64 * bits], by vectors of all lanes."""
    tiles, blocks = words.shape[:2]
    parts = [
        words[..., start : start + 4].reshape(tiles, blocks, -1) for start in range(0, 2 * bits, 4)
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=-1))


def _without_vectors(words: Words, bits: int) -> Words:
    """The inverse of `_with_vectors`."""
    tiles, blocks = words.shape[:2]
    parts, begin = [], 0
    for start in range(0, 2 * bits, 4):
        width = min(4, 2 * bits - start)
        part = words[..., begin : begin + _LANES * width]
        parts.append(part.reshape(tiles, blocks, _LANES, width))
        begin += _LANES * width
    return np.concatenate(parts, axis=-1)


def _pack_zeros(zeros: UInt8, bits: int) -> Int32:
    """[tiles, r0, g, groups] -> int32 [tiles, groups, words]: rows g and g + 8 in one byte, or in
    two at 8 bits."""
    pairs: npt.NDArray[Any] = zeros.transpose(0, 3, 2, 1)  # [tiles, groups, g, r0]
    if bits != 8:
        pairs = pairs[..., 0] | pairs[..., 1] << 4
    shape = (*pairs.shape[:2], -1)
    return np.ascontiguousarray(pairs).reshape(shape).view("<i4").astype(np.int32, copy=False)


def _unpack_zeros(words: Int32, bits: int) -> UInt8:
    """int32 [tiles, groups, words] -> [tiles, groups, rows]."""
    octets = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    if bits == 8:
        pairs = octets.reshape(*words.shape[:2], 8, 2)
    else:
        pairs = np.stack([octets & 15, octets >> 4], axis=-1)
    return pairs.transpose(0, 1, 3, 2).reshape(*words.shape[:2], TILE_ROWS)


def _rows_to(weight: QuantizedWeight, rows: int) -> QuantizedWeight:
    """The weight with rows of zeros behind it, `rows` in all."""
    missing = [(0, rows - len(weight.codes)), (0, 0)]
    middle = 2 ** (weight.bits - 1)
    scales: npt.NDArray[Any] = np.pad(weight.scales, missing)
    return QuantizedWeight(
        codes=np.pad(weight.codes, missing, constant_values=middle),
        scales=scales,
        zeros=np.pad(weight.zeros, missing, constant_values=middle),
        bits=weight.bits,
    )


def _weave(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Rows of two arrays [n, ...], eight of one and eight of the other."""
    return np.stack([p.reshape(-1, 8, p.shape[1]) for p in parts], axis=1).reshape(
        -1, parts[0].shape[1]
    )


def _unweave(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of `_weave`: the first array above the second."""
    return rows.reshape(-1, 2, 8, rows.shape[1]).transpose(1, 0, 2, 3).reshape(rows.shape)


def _or(values: Words) -> Words:
    """Bitwise or over the last axis."""
    combined: Words = np.bitwise_or.reduce(values, axis=-1)
    return combined
