"""Tensors of safetensors files: where they lie by the header, and their bytes.

They are read with pread into fresh arrays, never mapped: a mapped page counts as resident, so a
streaming pass over a large checkpoint would look as large as the checkpoint.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.artifacts.input_files import (
    open_plain,
    parse_json,
    show,
    show_path,
    show_text,
)
from awq_edge.errors import ModelError

Array = npt.NDArray[Any]

# safetensors dtype -> NumPy dtype. bf16 has no NumPy dtype: its bits come as uint16.
_NUMPY_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# Bits of the dtypes of safetensors that are known and not read.
_FOREIGN_BITS = {
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}
_MAX_HEADER_BYTES = 100_000_000
_MAX_RANK = 16
_MAX_BYTES = 1 << 62
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class TensorEntry:
    """The place of a tensor. dtype: safetensors name ("F16"). offset, size: bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_entry(entry: TensorEntry) -> Array:
    """A tensor as a fresh array, bfloat16 as uint16 bits.

    Raises ModelError when the file is shorter than its header says, or the dtype is not read here.
    """
    if entry.dtype not in _NUMPY_DTYPES:
        raise ModelError(
            f"{entry.file} has a tensor of dtype {entry.dtype}; supported: "
            f"{', '.join(_NUMPY_DTYPES)}"
        )
    array: Array = np.empty(entry.shape, dtype=_NUMPY_DTYPES[entry.dtype])
    view = array.reshape(-1).view(np.uint8).data
    with open_plain(entry.file) as file:
        file.seek(entry.offset)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise ModelError(f"{entry.file} is truncated; copy or download it again")
            done += count
    return array


def read_pieces(entry: TensorEntry) -> Iterator[Array]:
    """A tensor as `read_entry` gives it, some of its rows at a time, about 16 MB of them."""
    if not entry.shape or entry.size <= _PIECE_BYTES:
        yield read_entry(entry)
        return
    row = entry.size // entry.shape[0]
    step = max(1, _PIECE_BYTES // row)
    for begin in range(0, entry.shape[0], step):
        rows = min(step, entry.shape[0] - begin)
        yield read_entry(
            replace(
                entry,
                shape=(rows, *entry.shape[1:]),
                offset=entry.offset + begin * row,
                size=rows * row,
            )
        )


def read_header(file: Path) -> Iterator[tuple[str, TensorEntry]]:
    """Names and places of the tensors of one safetensors file.

    Raises ModelError when the file is missing, damaged or truncated. Format: the safetensors
    README: an 8-byte little-endian header length, the JSON header, then the bytes of the tensors
    without holes and without anything behind them.
    """
    name, remedy = show_path(file), "copy or download it again"
    with open_plain(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelError(
                    f"{name} is not a valid safetensors file (its header length {length:,} does "
                    f"not fit the file of {size:,} bytes); {remedy}"
                )
            header = stream.read(length)
        except OSError as error:
            raise ModelError(f"{name} cannot be read: {error.strerror}") from None
    tensors = parse_json(header, f"header of {name}")
    try:
        yield from _tensor_entries(file, tensors, 8 + length, size - 8 - length)
    except ValueError as error:
        raise ModelError(f"{name} is not a valid safetensors file ({error}); {remedy}") from None


def _tensor_entries(
    file: Path, tensors: Mapping[str, Any], begin: int, data_bytes: int
) -> Iterator[tuple[str, TensorEntry]]:
    """The tensors of a header. begin: of the data. Raises ValueError where they do not fill
    `data_bytes` one behind the other."""
    metadata = tensors.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its __metadata__ is no object of texts")
    entries = {
        name: _tensor_entry(file, name, info, begin)
        for name, info in tensors.items()
        if name != "__metadata__"
    }
    end = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].size)):
        if entry.offset != end:
            raise ValueError(f"tensor '{show_text(name)}' does not begin where the last one ends")
        end += entry.size
    if end != begin + data_bytes:
        raise ValueError(
            f"its header names {end - begin:,} bytes of tensors, which does not fit the file's "
            f"{data_bytes:,}"
        )
    yield from entries.items()


def _tensor_entry(file: Path, name: str, info: object, begin: int) -> TensorEntry:
    """One tensor of a header. Raises ValueError where its parts contradict each other."""
    shown = show_text(name)
    if not isinstance(info, dict) or not {"dtype", "shape", "data_offsets"} <= info.keys():
        raise ValueError(f"tensor '{shown}' has no dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in (*_NUMPY_DTYPES, *_FOREIGN_BITS):
        raise ValueError(f"tensor '{shown}' has dtype {show(dtype)}")
    if not _are_sizes(shape) or len(shape) > _MAX_RANK:
        raise ValueError(f"tensor '{shown}' has shape {show(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor '{shown}' has data_offsets {show(offsets)}")
    wanted = _tensor_bytes(dtype, shape)
    if offsets[1] - offsets[0] != wanted:
        raise ValueError(
            f"tensor '{shown}' of {dtype} {show(shape)} does not fit data_offsets {show(offsets)}"
        )
    return TensorEntry(file, dtype, tuple(shape), begin + offsets[0], wanted)


def _are_sizes(values: object) -> bool:
    """True for a list of integers that may be sizes in a file."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_BYTES
        for value in values
    )


def _tensor_bytes(dtype: str, shape: list[int]) -> int:
    """Bytes of a tensor in a file."""
    bits = _FOREIGN_BITS.get(dtype)
    if bits is None:
        return math.prod(shape) * np.dtype(_NUMPY_DTYPES[dtype]).itemsize
    return math.prod(shape) * bits // 8
