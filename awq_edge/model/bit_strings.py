"""Rows of codes as strings of bits in int32 words, code i in bits i * bits and up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from awq_edge.model.w4a16 import UInt8, check_codes

if TYPE_CHECKING:
    import torch

Int32 = npt.NDArray[np.int32]

WORD = 32  # bits


def words_of(codes: int, bits: int) -> int:
    """int32 words of a row."""
    return -(-codes * bits // WORD)


def loose_words_of(codes: int, bits: int) -> int:
    """int32 words of a row where no code goes across two words."""
    return -(-codes // (WORD // bits))


def is_loose(words: int, codes: int, bits: int) -> bool:
    """True where no code of a row goes across two words; False if both kinds are as long."""
    return words != words_of(codes, bits) and words == loose_words_of(codes, bits)


def pack(codes: UInt8, bits: int) -> Int32:
    """Pack rows of codes: uint8 [rows, n] to int32 [rows, ceil(n * bits / 32)].

    The NumPy reference. Raises ValueError when a code does not fit.
    """
    check_codes(int(codes.max()) if codes.size else 0, bits)
    rows, count = codes.shape
    string = np.zeros((rows, words_of(count, bits) * WORD), np.uint8)
    string[:, : count * bits] = _bits(codes, bits)
    return np.packbits(string, axis=1, bitorder="little").view("<i4")


def unpack(packed: Int32, bits: int, count: int, loose: bool = False) -> UInt8:
    """The inverse of `pack`: int32 [rows, words] to uint8 [rows, count].

    loose: no code goes across two words.
    """
    rows, words = packed.shape
    raw = np.ascontiguousarray(packed).view(np.uint8)
    string = np.unpackbits(raw, axis=1, bitorder="little")
    if loose:
        lanes = WORD // bits
        string = string.reshape(rows, words, WORD)[:, :, : lanes * bits]
    string = string.reshape(rows, -1)[:, : count * bits].reshape(rows, count, bits)
    return np.packbits(string, axis=2, bitorder="little")[:, :, 0]


def _bits(codes: UInt8, bits: int) -> UInt8:
    """uint8 [rows, n] to single bits [rows, n * bits], the lowest first."""
    singles = np.unpackbits(codes[:, :, None], axis=2, bitorder="little")[:, :, :bits]
    return singles.reshape(len(codes), -1)


def pack_torch(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """`pack` in torch, on the device of the codes.

    `bits` words hold 32 codes; code i of them begins in word i * bits // 32.
    """
    import torch

    check_codes(int(codes.max()) if codes.numel() else 0, bits)
    rows, count = codes.shape
    runs = -(-count // WORD)
    if count % WORD:
        codes = torch.nn.functional.pad(codes, (0, runs * WORD - count))
    lanes = codes.reshape(rows, runs, WORD)
    words = torch.zeros(rows, runs, bits, dtype=torch.int32, device=codes.device)
    for lane in range(WORD):
        word, shift = divmod(lane * bits, WORD)
        values = lanes[:, :, lane].to(torch.int32)
        words[:, :, word] |= values << shift
        if shift + bits > WORD:
            words[:, :, word + 1] |= values >> (WORD - shift)
    return words.reshape(rows, runs * bits)[:, : words_of(count, bits)].contiguous()
