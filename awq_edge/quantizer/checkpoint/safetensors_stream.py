"""Writing a safetensors file from tensors that are read when their turn comes.

safetensors' own writer wants every tensor of a file in memory. This one holds a piece of one, and
makes the same bytes: the header's entries and the data go by type, the widest first, then by name.
Format: the safetensors README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge.model.files import Array
from awq_edge.model.safetensors_files import TensorEntry, read_pieces

# safetensors dtype -> bytes of an element, in the order of safetensors' own list of types.
_ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
}
_ORDER = {dtype: place for place, dtype in enumerate(_ITEM_BYTES)}


@dataclass(frozen=True)
class StreamedTensor:
    """dtype: safetensors name ("F16"). pieces: its bytes, little-endian and row by row, in as many
    pieces as there are."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        return _ITEM_BYTES[self.dtype] * math.prod(self.shape)


def tensor_in_file(entry: TensorEntry) -> StreamedTensor:
    """A tensor as another file holds it."""
    return StreamedTensor(entry.dtype, entry.shape, lambda: read_pieces(entry))


def write_safetensors(tensors: Mapping[str, StreamedTensor], path: Path) -> None:
    """Write one file."""
    order = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            written = sum(int(file.write(piece.data)) for piece in tensors[name].pieces())
            assert written == tensors[name].nbytes, f"{name}: {written} bytes"
