"""A Hugging Face model directory: config.json, tokenizer files, and tensors read one at a time.

Tensors are read with pread into fresh arrays, never mapped: a mapped page counts as resident, so a
streaming pass over a large checkpoint would look as large as the checkpoint.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge._package import DATA
from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.file_names import REPORT_FILES, TOKENIZER_FILES
from awq_edge.artifacts.input_files import (
    open_plain,
    parse_json,
    read_json,
    show,
    show_path,
    show_text,
)
from awq_edge.artifacts.paths import user_path
from awq_edge.errors import ModelError
from awq_edge.process.interruption import keeping

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
_MAX_INDEX_BYTES = 100_000_000
_MAX_RANK = 16
_MAX_BYTES = 1 << 62
_PIECE_BYTES = 1 << 24
# Keys of config.json that describe quantized weights.
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
_EARLY_CONFIGS = {"quant_config.json": "awq", "quantize_config.json": "gptq"}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies. dtype: safetensors name ("F16"). offset, size: bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class ModelFiles:
    """A local model or checkpoint directory."""

    def __init__(self, path: Path) -> None:
        """Read config.json and the safetensors headers.

        Raises ModelError when the directory, config.json or the weights are missing or damaged.
        """
        self.path = path
        if not path.is_dir():
            raise ModelError(f"model directory {path} does not exist")
        self.config: Mapping[str, Any] = read_config(path)
        self.entries = _entries(path)
        self.config = _with_early_config(path, self.config, self.entries)

    @classmethod
    def of_foreign(cls, path: Path) -> ModelFiles:
        """A directory of another format: what config.json and safetensors there are.

        Raises ModelError where they are damaged.
        """
        found = cls.__new__(cls)
        found.path = path
        described = (path / "config.json").exists()
        found.config = read_json(path / "config.json") if described else {}
        found.entries = _entries(path) if any(path.glob("*.safetensors")) else {}
        found.config = _with_early_config(path, found.config, found.entries)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def read(self, name: str) -> Array:
        """One tensor as a fresh array; bfloat16 comes as float32, other dtypes as stored.

        Raises ModelError when it is missing or the file is shorter than its header says.
        """
        entry = self._entry(name)
        array = read_entry(entry)
        if entry.dtype == "BF16":
            wide = array.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return array

    def read_bits(self, name: str) -> tuple[Array, str]:
        """One tensor as stored, with its safetensors dtype; bfloat16 as uint16 bits."""
        entry = self._entry(name)
        return read_entry(entry), entry.dtype

    def read_bit_pieces(self, name: str) -> Iterator[Array]:
        """One tensor as stored, bfloat16 as uint16 bits, some rows at a time."""
        return read_pieces(self._entry(name))

    def equal(self, first: str, second: str) -> bool:
        """Whether two tensors have the same values, whatever their dtypes are."""
        one, other = self._entry(first), self._entry(second)
        if one.shape != other.shape:
            return False
        if one.dtype == other.dtype:
            pieces = zip(read_pieces(one), read_pieces(other), strict=True)
            return all(np.array_equal(a, b) for a, b in pieces)
        return bool(np.array_equal(self.read(first), self.read(second)))

    def _entry(self, name: str) -> TensorEntry:
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"{self.path}: weight '{name}' is missing")
        return entry

    def generation_config(self) -> Mapping[str, Any]:
        """generation_config.json, or an empty mapping where there is none."""
        path = self.path / "generation_config.json"
        return read_json(path) if path.exists() else {}

    def tokenizer_files(self) -> list[Path]:
        """The tokenizer, chat template, image processor and generation files that exist."""
        return self._existing(TOKENIZER_FILES)

    def require_readable(self) -> None:
        """Raise ModelError for a tokenizer or report file that cannot be read: a copy of it comes
        at the end of the work."""
        for file in (*self.tokenizer_files(), *self.report_files()):
            open_plain(file).close()

    def report_files(self) -> list[Path]:
        """The quantization report, as data and as a page, where there is one."""
        return self._existing(REPORT_FILES)

    def _existing(self, names: Sequence[str]) -> list[Path]:
        """Files that exist. Raises ModelError for one that is no plain file: they are copied, and
        a device has no end."""
        paths = [self.path / name for name in names if (self.path / name).exists()]
        for path in paths:
            open_plain(path).close()
        return paths


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
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
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


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises ModelError as `read_json`, or naming the format of
    what is there instead."""
    if not (path / "config.json").exists():
        from awq_edge.model.foreign_formats import refuse_foreign

        refuse_foreign(path, {})
    return read_json(path / "config.json")


def _with_early_config(
    path: Path, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> Mapping[str, Any]:
    """config.json with what early versions of AutoAWQ and AutoGPTQ wrote in a file of its own."""
    packed = any(name.endswith(".qweight") for name in entries)
    if not packed or any(config.get(key) for key in QUANTIZATION_KEYS):
        return config
    for name, method in _EARLY_CONFIGS.items():
        if (path / name).exists():
            return {**config, "quantization_config": {"quant_method": method,
                                                      **read_json(path / name)}}  # fmt: skip
    return config


def _entries(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a directory by name.

    As transformers has it: model.safetensors alone where there is one, unless the index names it
    (an index of other files is left from what lay there before); else the shards of the index, of
    which a tensor that several hold is taken from the one that weight_map names; else all files.
    Raises ModelError where two files hold one tensor and nothing decides.
    """
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    weight_map = _weight_map(index) if index.exists() else {}
    if whole.exists() and whole.name not in weight_map.values():
        return dict(sorted(read_header(whole)))
    files = sorted({path / name for name in weight_map.values()})
    files = files or sorted(path.glob("*.safetensors"))
    if not files:
        from awq_edge.model.foreign_formats import refuse_foreign

        refuse_foreign(path, {})
        hint = ""
        if list(path.glob("*.bin")):
            hint = (
                "; it has PyTorch .bin files: convert them with transformers' "
                "save_pretrained(..., safe_serialization=True)"
            )
        raise ModelError(f"{path} has no *.safetensors files{hint}")
    found: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in read_header(file):
            if weight_map.get(name, file.name) != file.name:
                continue
            if name in found:
                raise ModelError(
                    f"{path}: both {found[name].file.name} and {file.name} hold '{name}', and no "
                    f"{index.name} says which is meant; move the files of the other model away"
                )
            found[name] = entry
    for name, file_name in weight_map.items():
        if name not in found:
            raise ModelError(
                f"{index} says that {file_name} holds '{name}', which it does not; the index and "
                "the files do not belong together: copy or download them again"
            )
    return dict(sorted(found.items()))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensors and their files by an index. Raises ModelError where it has none, or names a file
    that is not beside it."""
    keys = ConfigKeys(read_json(index, limit=_MAX_INDEX_BYTES), str(index))
    weight_map = keys.table("weight_map")
    if weight_map is None or not weight_map.values:
        raise ModelError(f"{index} has no weight_map")
    for name, file in weight_map.values.items():
        is_beside = isinstance(file, str) and file == Path(file).name
        if not is_beside or not file.endswith(".safetensors"):
            raise ModelError(
                f"{index}: weight_map has {show(file)} for '{show_text(name)}'; it must be a "
                ".safetensors file beside the index"
            )
    return dict(weight_map.values)


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
    """The tensors of a header. begin: of the data. Raises ValueError where they are not what
    fills `data_bytes`."""
    metadata = tensors.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its __metadata__ is no object of texts")
    found = {
        name: _tensor_entry(file, name, info, begin)
        for name, info in tensors.items()
        if name != "__metadata__"
    }
    end = begin
    for name, entry in sorted(found.items(), key=lambda item: (item[1].offset, item[1].size)):
        if entry.offset != end:
            raise ValueError(f"tensor '{show_text(name)}' does not begin where the last one ends")
        end += entry.size
    if end != begin + data_bytes:
        raise ValueError(
            f"its header names {end - begin:,} bytes of tensors, which does not fit the file's "
            f"{data_bytes:,}"
        )
    yield from found.items()


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
    """Whether it is a list of integers that a file can have."""
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


def resolve_model(name: str, *, weights: bool = True) -> Path:
    """The local directory of MODEL: `demo`, an existing directory, or a Hugging Face hub id.

    A hub id is downloaded into the hub's cache (HF_TOKEN is respected); weights=False takes the
    configuration and tokenizer only. Raises ModelError when it cannot be had.
    """
    if name == "demo":
        return DATA / "demo"
    path = user_path(name, "MODEL")
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path} is a file; give the model's directory")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_path or os.sep in name[name.find("/") + 1 :]:
        raise ModelError(
            f"model directory {path} does not exist; give a directory, a hub id "
            "(organization/name) or 'demo'"
        )
    return _download(name, weights)


def download_config(name: str) -> Path:
    """The directory of a hub id's config.json in the hub's cache; nothing else is downloaded.

    Raises ModelError as `resolve_model`.
    """
    return _download_files(name, ["config.json", "hf_quant_config.json"])


def _download(name: str, weights: bool) -> Path:
    patterns = ["config.json", "hf_quant_config.json", *_EARLY_CONFIGS, *TOKENIZER_FILES]
    if weights:
        patterns += ["*.safetensors", "model.safetensors.index.json"]
    return _download_files(name, patterns)


def _download_files(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        with keeping(lambda: "what was downloaded is kept; the same command goes on with it"):
            return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelError(
            f"hub model '{name}' is gated: accept its licence on its page, then set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"there is no directory and no hub model '{name}' (a private one needs HF_TOKEN)"
        ) from None
    except HFValidationError as error:
        raise ModelError(f"'{name}' is no directory and no hub id: {error}") from None
    except Exception as error:
        raise ModelError(
            f"hub model '{name}' cannot be downloaded ({type(error).__name__}); check the network, "
            "or copy the model here and give its directory"
        ) from None
