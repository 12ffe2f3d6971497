"""The header of a GGUF file: what it says of its model, and its tensors. Reads no weight.

    "GGUF"  uint32 version  uint64 tensors  uint64 keys
    keys:     name, uint32 type, value       strings: uint64 length, UTF-8
    tensors:  name, uint32 dimensions, uint64 each (rows last), uint32 type, uint64 offset

Source: ggml's docs/gguf.md. The gguf package's reader makes an array of every token and checks no
length, and is not there on a device.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from awq_edge.artifacts.input_files import open_plain, show_path, show_text
from awq_edge.errors import ArtifactError, AwqEdgeError

SUFFIX = ".gguf"
MADE_BY = "awq_edge.version"  # key of files that were written here
_MAGIC = b"GGUF"
_ALIGNMENT, _USUAL_ALIGNMENT = "general.alignment", 32
_VERSIONS = (2, 3)
_MAX_KEYS, _MAX_TENSORS, _MAX_DIMENSIONS = 10_000, 1_000_000, 4
_MAX_NAME, _MAX_STRING, _MAX_ITEMS = 65_535, 64_000_000, 100_000_000
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
# Number of a type in the file -> its name; of those that models in use have.
_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K",
          11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS",
          18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
          30: "BF16", 39: "MXFP4"}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. shape: rows first, as NumPy has it. type: GGUF's name of it. offset: bytes behind
    the header."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int

    @property
    def weights(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class GgufHeader:
    """What a file says. keys: scalars and strings by name. array_lengths: items of the arrays.
    size: bytes of the file. data_bytes: those of the tensors, each with what fills it up to the
    next."""

    keys: dict[str, Any]
    array_lengths: dict[str, int]
    tensors: tuple[GgufTensor, ...]
    size: int
    data_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.keys.get("general.architecture", "unknown"))

    def type_bytes(self) -> dict[str, int]:
        """Bytes of the tensors of each type."""
        placed = sorted(self.tensors, key=lambda tensor: tensor.offset)
        ends = [tensor.offset for tensor in placed[1:]] + [self.data_bytes]
        sizes: dict[str, int] = {}
        for tensor, end in zip(placed, ends, strict=True):
            sizes[tensor.type] = sizes.get(tensor.type, 0) + end - tensor.offset
        return sizes

    def of_architecture(self, key: str) -> Any:
        """A key of the architecture's ("context_length"), None where it is not there."""
        return self.keys.get(f"{self.architecture}.{key}")


def is_gguf(path: Path) -> bool:
    """True for a file that begins as GGUF does."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def how_to_run(path: Path) -> str:
    """What to type to run a GGUF file."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower())  # what ollama takes
    file, line = shlex.quote(str(path)), shlex.quote(f"FROM {path.absolute()}")
    return (
        f"`llama-cli -m {file}` of llama.cpp, or `echo {line} > Modelfile && ollama create {name} "
        f"-f Modelfile && ollama run {name}`"
    )


def is_own_gguf(path: Path) -> bool:
    """True for a GGUF file that this project has written."""
    try:
        return is_gguf(path) and MADE_BY in read_gguf_header(path).keys
    except AwqEdgeError:
        return False


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a file. Raises ArtifactError naming what is damaged, ModelError where it cannot
    be read."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _Reader(file, size).read()
        except (ValueError, struct.error, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"{show_path(path)} is a damaged GGUF file: {show_text(str(error))}; copy or "
                "export it again"
            ) from None


class _Reader:
    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def read(self) -> GgufHeader:
        if self._bytes(len(_MAGIC)) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is none of {_VERSIONS}")
        tensors = self._count(_MAX_TENSORS, "tensors")
        keys: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(self._count(_MAX_KEYS, "keys")):
            name, kind = self._string(_MAX_NAME), self._number("I")
            if kind == _ARRAY:
                lengths[name] = self._skip_array()
            else:
                keys[name] = self._value(kind)
        listed = tuple(self._tensor() for _ in range(tensors))
        alignment = keys.get(_ALIGNMENT, _USUAL_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0:
            raise ValueError(f"{_ALIGNMENT} is {alignment!r}")
        begin = -(-self._file.tell() // alignment) * alignment
        data = max(0, self._size - begin)
        if any(tensor.offset > data for tensor in listed):
            raise ValueError("a tensor lies behind its end")
        return GgufHeader(keys, lengths, listed, self._size, data)

    def _tensor(self) -> GgufTensor:
        name = self._string(_MAX_NAME)
        dimensions = self._number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"'{name}' has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        kind = self._number("I")
        return GgufTensor(name, shape, _TYPES.get(kind, f"type {kind}"), self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string(_MAX_STRING)
        if kind not in _SCALARS:
            raise ValueError(f"type {kind} of a value is not known")
        return self._number(_SCALARS[kind])

    def _skip_array(self) -> int:
        """Pass over an array; returns the number of its items."""
        kind = self._number("I")
        count = self._count(_MAX_ITEMS, "items of an array")
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._count(_MAX_STRING, "bytes of a string"))
        elif kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise ValueError(f"an array of type {kind} is not known")
        return count

    def _string(self, limit: int) -> str:
        return self._bytes(self._count(limit, "bytes of a string")).decode("utf-8")

    def _count(self, limit: int, what: str) -> int:
        count = int(self._number("Q"))
        if count > limit:
            raise ValueError(f"{count:,} {what}; at most {limit:,} are read")
        return count

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(code)))[0]

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self._size else b""
        if len(data) < count:
            raise ValueError("it ends within its header")
        return data

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise ValueError("it ends within its header")
        self._file.seek(count, os.SEEK_CUR)
