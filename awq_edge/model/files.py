"""A Hugging Face model directory: config.json, tokenizer files, and tensors read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.file_names import REPORT_FILES, TOKENIZER_FILES
from awq_edge.artifacts.input_files import (
    open_plain,
    read_json,
    show,
    show_text,
)
from awq_edge.errors import ModelError
from awq_edge.model.safetensors_files import (
    TensorEntry,
    read_entry,
    read_header,
    read_pieces,
)

Array = npt.NDArray[Any]

_MAX_INDEX_BYTES = 100_000_000
# Keys of config.json that describe quantized weights.
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
# Where early versions of AutoAWQ and AutoGPTQ wrote them.
EARLY_CONFIGS = {"quant_config.json": "awq", "quantize_config.json": "gptq"}
# Of config, manifest, recipe, graph or report, and of the file system's own blocks.
_SMALL_BYTES = 1 << 20


class ModelFiles:
    """A local model or checkpoint directory."""

    def __init__(self, path: Path) -> None:
        """Read config.json and the safetensors headers.

        Raises ModelError when the directory, config.json or the weights are missing or damaged;
        where they are damaged and of a format that is not read anyway, it names that.
        """
        self.path = path
        self.damage: str | None = None  # why the tensors of a foreign format are not known
        if not path.is_dir():
            raise ModelError(f"model directory {path} does not exist")
        self.config: Mapping[str, Any] = read_config(path)
        try:
            self.entries = _entries(path)
        except ModelError:
            from awq_edge.model.foreign_formats import refuse_foreign

            refuse_foreign(path, self.config)
            raise
        self.config = _with_early_config(path, self.config, self.entries)

    @classmethod
    def of_foreign(cls, path: Path) -> ModelFiles:
        """A directory of another format, with the config.json and safetensors that it has.

        Damaged tensors are none, with the reason in `damage`. Raises ModelError for config.json.
        """
        files = cls.__new__(cls)
        files.path = path
        described = (path / "config.json").exists()
        files.config = read_json(path / "config.json") if described else {}
        files.entries, files.damage = {}, None
        try:
            if any(path.glob("*.safetensors")):
                files.entries = _entries(path)
        except ModelError as error:
            files.damage = str(error)
        files.config = _with_early_config(path, files.config, files.entries)
        return files

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def read(self, name: str) -> Array:
        """One tensor as a fresh array; bfloat16 comes as float32, other dtypes as stored.

        Raises ModelError when it is missing or the file is shorter than its header says.
        """
        entry = self._entry(name)
        return _widened(read_entry(entry), entry.dtype)

    def read_bits(self, name: str) -> tuple[Array, str]:
        """One tensor as stored, with its safetensors dtype; bfloat16 as uint16 bits."""
        entry = self._entry(name)
        return read_entry(entry), entry.dtype

    def read_bit_pieces(self, name: str) -> Iterator[Array]:
        """One tensor as stored, bfloat16 as uint16 bits, some rows at a time."""
        return read_pieces(self._entry(name))

    def pieces(self, name: str) -> Iterator[Array]:
        """One tensor as `read` gives it, some rows at a time."""
        entry = self._entry(name)
        return (_widened(piece, entry.dtype) for piece in read_pieces(entry))

    def equal(self, first: str, second: str) -> bool:
        """True where two tensors have the same values, whatever their dtypes are."""
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

    def small_bytes(self) -> int:
        """About the bytes of a checkpoint's or a bundle's files beside its weights."""
        copied = (*self.tokenizer_files(), *self.report_files())
        return sum(file.stat().st_size for file in copied) + _SMALL_BYTES

    def _existing(self, names: Sequence[str]) -> list[Path]:
        """Files that exist. Raises ModelError for one that is no plain file: they are copied, and
        a device has no end."""
        paths = [self.path / name for name in names if (self.path / name).exists()]
        for path in paths:
            open_plain(path).close()
        return paths


def _widened(array: Array, dtype: str) -> Array:
    """A stored array, bfloat16 bits as float32."""
    if dtype != "BF16":
        return array
    wide = array.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


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
    """config.json with the settings that early AutoAWQ and AutoGPTQ wrote in another file."""
    packed = any(name.endswith(".qweight") for name in entries)
    if not packed or any(config.get(key) for key in QUANTIZATION_KEYS):
        return config
    for name, method in EARLY_CONFIGS.items():
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
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in read_header(file):
            if weight_map.get(name, file.name) != file.name:
                continue
            if name in entries:
                raise ModelError(
                    f"{path}: both {entries[name].file.name} and {file.name} hold '{name}', and no "
                    f"{index.name} says which is meant; move the files of the other model away"
                )
            entries[name] = entry
    for name, file_name in weight_map.items():
        if name not in entries:
            raise ModelError(
                f"{index} says that {file_name} holds '{name}', which it does not; the index and "
                "the files do not belong together: copy or download them again"
            )
    return dict(sorted(entries.items()))


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
