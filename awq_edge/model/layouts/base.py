"""The interface of layouts: names, shapes and bits of stored tensors, and keys of config.json."""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic_core import SchemaError, SchemaValidator

from awq_edge.artifacts.config_keys import MAX_CHANNELS, ConfigKeys
from awq_edge.model.safetensors_files import TensorEntry
from awq_edge.model.w4a16 import NumberFormat, QuantizedWeight, UInt8

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
# A stored tensor by name; bfloat16 as float32.
Read = Callable[[str], Array]
Entries = Mapping[str, TensorEntry]
Shapes = dict[str, tuple[int, ...]]

ONE_GROUP = -1  # group_size of a linear whose rows are one group each, whatever their length
_REGEX = "re:"
_MAX_EXPRESSION = 10_000  # characters; a list of 100 linears in one expression has 4,000
_MAX_REPEATS = 4
ANY_LINEAR = "Linear"
DENSE_DTYPES = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class StoredConfig:
    """A quantization_config, read.

    method: as reports call it. targets: names, "re:" regular expressions that match from the
    beginning, or "Linear", each with its number format. ignore: likewise, what stays unquantized.
    strict: whether a target must be stored quantized.
    """

    method: str
    targets: Mapping[str, NumberFormat]
    ignore: tuple[str, ...] = ()
    strict: bool = True

    def format_of(self, names: tuple[str, ...], in_features: int) -> NumberFormat | None:
        """The number format of a linear, None where it is not to be quantized.

        names: the linear's full names, on disk and in transformers' class. A name goes before a
        regular expression, that before the class; among equals the alphabet decides, as in
        compressed-tensors' `match_targets`.
        """
        if any(_matches(name, pattern) for pattern in self.ignore for name in names):
            return None
        for target in sorted(self.targets, key=_specificity):
            if any(_matches(name, target) for name in names):
                number_format = self.targets[target]
                if number_format.group_size == ONE_GROUP:
                    return replace(number_format, group_size=in_features)
                return number_format
        return None


@dataclass(frozen=True)
class CheckpointFormats:
    """The formats of a new checkpoint. main: of most linears. quantized: of each, by full name.
    dense: linears that stay in 16 bits. kept: modules that do, with all below them. method: as
    reports call it. aliases: names of linears in transformers' class, where they differ from those
    on disk."""

    main: NumberFormat
    quantized: Mapping[str, NumberFormat]
    dense: Sequence[str]
    method: str
    kept: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def names(self, linear: str) -> list[str]:
        """A linear's name on disk, and its other one."""
        return [linear, *([self.aliases[linear]] if linear in self.aliases else [])]


class Layout(ABC):
    """One layout. Has no state, so that it may travel between processes.

    name: of `--format`. quant_method: its name in config.json. description: for messages.
    bits: what a code may have. mixed: whether linears may differ in bits or groups, which the
    output layer does.
    """

    name: ClassVar[str]
    quant_method: ClassVar[str]
    description: ClassVar[str]
    bits: ClassVar[tuple[int, ...]]
    mixed: ClassVar[bool]
    # Types of the stored tensors that are no floating point numbers, by the end of their names.
    integers: ClassVar[Mapping[str, tuple[str, ...]]]

    def dtypes(self, name: str) -> tuple[str, ...]:
        """The safetensors types that a tensor of this full name may have."""
        return self.integers.get(name.rpartition(".")[2], DENSE_DTYPES)

    @abstractmethod
    def obstacle(
        self, out_features: int, in_features: int, number_format: NumberFormat
    ) -> str | None:
        """Why a linear cannot be stored, or None if it can."""

    @abstractmethod
    def read_config(self, quantization: Mapping[str, Any], path: Path) -> StoredConfig:
        """Read quantization_config. path: of config.json, for errors.

        Raises ModelError naming what is not supported.
        """

    @abstractmethod
    def make_config(self, formats: CheckpointFormats) -> dict[str, Any]:
        """quantization_config of a new checkpoint."""

    @abstractmethod
    def is_stored(self, linear: str, entries: Entries) -> bool:
        """True where a linear of this full name is stored quantized."""

    @abstractmethod
    def shapes(
        self,
        linear: str,
        shape: tuple[int, int],
        number_format: NumberFormat,
        entries: Entries,
    ) -> Shapes:
        """Tensors of a quantized linear of shape [out, in] by full name, with their shapes.

        entries: what is there, for layouts with more than one way to store a linear.
        """

    @abstractmethod
    def scales_name(self, linear: str) -> str:
        """Name of the tensor of scales of a linear by full name."""

    @abstractmethod
    def scales(self, linear: str, read: Read) -> Array:
        """Scales of a stored linear as they are stored, [out, in / group]."""

    @abstractmethod
    def stores_zeros(self, number_format: NumberFormat) -> bool:
        """True where zero points are stored; all are 2**(bits-1) where they are not."""

    @abstractmethod
    def zeros(self, linear: str, number_format: NumberFormat, read: Read) -> UInt8:
        """Zero points of a stored linear, where they are stored: uint8 [out, in / group]."""

    @abstractmethod
    def codes(self, linear: str, number_format: NumberFormat, read: Read) -> UInt8:
        """Codes of a stored linear, uint8 [out, in]."""

    @abstractmethod
    def pack(
        self,
        linear: str,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        number_format: NumberFormat,
    ) -> dict[str, torch.Tensor]:
        """The stored tensors of a linear, on the device of its codes.

        codes: uint8 [out, in]. scales: float16 [out, in / group]. zeros: uint8, like scales.
        Raises ValueError for what the layout cannot hold.
        """

    def nibbles(self, linear: str, number_format: NumberFormat, read: Read) -> Iterator[Array]:
        """Codes of up to 4 bits two to a byte along in_features, the first in the low nibble:
        uint8 [rows, in / 2], in pieces of whole rows. In even."""
        codes = self.codes(linear, number_format, read)
        yield codes[:, 0::2] | (codes[:, 1::2] << 4)

    def read(self, linear: str, number_format: NumberFormat, read: Read) -> QuantizedWeight:
        """A stored linear. Raises ValueError where its tensors contradict each other."""
        scales = np.ascontiguousarray(self.scales(linear, read))
        if scales.dtype != np.float16:
            scales = scales.astype(np.float32, copy=False)
        if self.stores_zeros(number_format):
            zeros = self.zeros(linear, number_format, read)
        else:
            zeros = np.full(scales.shape, 2 ** (number_format.bits - 1), np.uint8)
        return QuantizedWeight(
            codes=self.codes(linear, number_format, read),
            scales=scales,
            zeros=zeros,
            bits=number_format.bits,
        )


def check_groups(in_features: int, group_size: int) -> str | None:
    """Why a row cannot be cut into groups, or None if it can."""
    if in_features % group_size:
        return f"in_features {in_features} is not a multiple of group_size {group_size}"
    return None


def quantization_keys(quantization: Mapping[str, Any], path: Path) -> ConfigKeys:
    """A typed view of the quantization_config of a config.json. path: for errors."""
    return ConfigKeys(quantization, str(path), prefix="quantization_config.")


def is_group_size(value: object) -> bool:
    """True where a value of config.json is a positive integer that a row can have as its group."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_CHANNELS


def _specificity(target: str) -> tuple[bool, bool, str]:
    return (target == ANY_LINEAR, target.startswith(_REGEX), target)


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith(_REGEX):
        return matcher(pattern.removeprefix(_REGEX))(name)
    return pattern in (name, ANY_LINEAR)


@functools.cache
def matcher(expression: str) -> Callable[[str], bool]:
    """A test in bounded time of whether a regular expression matches at the start of a name.

    Python's own engine takes for ever with some expressions; pydantic's does not, and has no
    lookaround and no references back. Expressions that need these, and repeat no group, are left to
    Python's. Raises ValueError for a text that is no regular expression, or might never end.
    """
    if len(expression) > _MAX_EXPRESSION:
        raise ValueError(f"it has {len(expression):,} characters, at most {_MAX_EXPRESSION:,}")
    try:
        python = re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    try:
        rust = SchemaValidator({"type": "str", "pattern": f"^(?:{expression})"})
    except SchemaError:
        plain = re.sub(r"\\.|\[[^\]]*\]", "x", expression)
        if re.search(r"\)[*+{]", plain) or len(re.findall(r"[*+{]", plain)) > _MAX_REPEATS:
            raise ValueError("it may take for ever: it repeats groups, or too often") from None
        return lambda name: python.match(name) is not None

    def matches(name: str) -> bool:
        return bool(rust.isinstance_python(name))

    return matches
