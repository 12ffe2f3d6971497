"""A typed view of a JSON object from outside: every key that is read has a type and bounds.

Types are as transformers 5 checks them: true is no integer, 64.0 and "64" are none either, a flag
is true or false. What transformers leaves open (a negative size, an infinite number, a million
layers) is bounded here, above what any model in use has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field

from awq_edge.artifacts.input_files import show
from awq_edge.errors import AwqEdgeError, KeyValueError

# Bounds, the largest in use in parentheses.
MAX_LAYERS = 1_024  # (126)
MAX_EXPERTS = 4_096  # (512)
MAX_EXPERTS_IN_ALL = 131_072  # experts of all layers (23,000)
MAX_CHANNELS = 1 << 22  # of hidden states and inside an MLP (106,496)
MAX_HEADS = 4_096  # (256)
MAX_HEAD_SIZE = 4_096  # (512)
MAX_VOCABULARY = 1 << 24  # (262,400)
MAX_POSITIONS = 1 << 28  # (10,485,760)
MAX_WINDOW = 1 << 31
MAX_TOKEN_ID = (1 << 31) - 1
_MAX_TOKEN_IDS = 4_096  # in one list (24)

# The same for the fields of pydantic models.
ByteCount = Annotated[int, Field(ge=0, le=1 << 50)]
TensorSize = Annotated[int, Field(ge=0, le=1 << 40)]
Positions = Annotated[int, Field(ge=1, le=MAX_POSITIONS)]
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Heads = Annotated[int, Field(ge=1, le=MAX_HEADS)]
HeadSize = Annotated[int, Field(ge=1, le=MAX_HEAD_SIZE)]
Bits = Annotated[int, Field(ge=1, le=64)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]


class ConfigKeys:
    """The keys of one JSON object. Every method raises `error` naming file, key and value.

    nullable: null counts as missing. A key that is missing has its default, or is an error where
    there is none.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str = "config.json",
        *,
        prefix: str = "",
        error: type[AwqEdgeError] = KeyValueError,
    ) -> None:
        """source: the file, for messages. prefix: "text_config." where it is part of a file."""
        self.values = values
        self.source = source
        self._prefix = prefix
        self._error = error
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """True where the key is there and not null."""
        self._read.add(key)
        return self.values.get(key) is not None

    def settle(self, *keys: str) -> None:
        """Count keys as read whose effect another key, which was read, has taken over."""
        self._read.update(keys)

    def unread(self) -> list[str]:
        """Keys that no method was asked for, sorted."""
        return sorted(set(self.values) - self._read)

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigKeys:
        """The same object, with values for keys that are missing."""
        return self._with({**defaults, **self.values})

    def replacing(self, values: Mapping[str, Any]) -> ConfigKeys:
        """The same object with other values for some keys."""
        return self._with({**self.values, **values})

    def without(self, keys: Collection[str]) -> ConfigKeys:
        """The same object without some keys."""
        return self._with({key: value for key, value in self.values.items() if key not in keys})

    def size(
        self, key: str, most: int, default: int | None = None, *, nullable: bool = False
    ) -> int:
        """A positive integer up to `most`."""
        value = self._value(key, default, nullable)
        if not _is_integer(value) or value <= 0:
            raise self.refusal(key, "must be a positive integer", value)
        if value > most:
            raise self.refusal(key, f"must be at most {most:,}", value)
        return int(value)

    def optional_size(self, key: str, most: int) -> int | None:
        """A positive integer up to `most`, None where the key is missing or null."""
        return self.size(key, most) if key in self else None

    def count(self, key: str, most: int, default: int) -> int:
        """An integer from 0 to `most`."""
        value = self._value(key, default, False)
        if not _is_integer(value) or not 0 <= value <= most:
            raise self.refusal(key, f"must be an integer from 0 to {most:,}", value)
        return int(value)

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        above: float = 0.0,
        most: float = 1e12,
        nullable: bool = False,
    ) -> float:
        """A finite number in (above, most]."""
        value = self._value(key, default, nullable)
        if not _is_number(value):
            raise self.refusal(key, "must be a finite number", value)
        if not above < value <= most:
            wanted = "a positive number" if above == 0 else f"a number above {above:g}"
            raise self.refusal(key, f"must be {wanted} and at most {most:g}", value)
        return float(value)

    def number_in(self, key: str, value: object, *, most: float = 1e9) -> float:
        """A positive finite number of a list. value: one of `items`."""
        if not _is_number(value) or not 0 < value <= most:  # type: ignore[operator]
            raise self.refusal(key, f"must be a list of positive numbers up to {most:g}", value)
        return float(value)  # type: ignore[arg-type]

    def optional_number(self, key: str, *, above: float = 0.0, most: float = 1e12) -> float | None:
        """A finite number in (above, most], None where the key is missing or null."""
        return self.number(key, above=above, most=most) if key in self else None

    def flag(self, key: str, default: bool = False, *, nullable: bool = False) -> bool:
        """true or false."""
        value = self._value(key, default, nullable)
        if not isinstance(value, bool):
            raise self.refusal(key, "must be true or false", value)
        return value

    def text(self, key: str, default: str | None = None, *, nullable: bool = False) -> str:
        """A text."""
        value = self._value(key, default, nullable)
        if not isinstance(value, str):
            raise self.refusal(key, "must be a text in quotes", value)
        return value

    def table(self, key: str) -> ConfigKeys | None:
        """An object, None where the key is missing or null."""
        value = self._value(key, None, False)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refusal(key, "must be an object", value)
        return ConfigKeys(value, self.source, prefix=f"{self._prefix}{key}.", error=self._error)

    def items(self, key: str) -> list[Any] | None:
        """A list of anything, None where the key is missing or null."""
        value = self._value(key, None, False)
        if value is not None and not isinstance(value, list):
            raise self.refusal(key, "must be a list", value)
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts, None where the key is missing or null."""
        texts = self.items(key)
        for item in texts or ():
            if not isinstance(item, str):
                raise self.refusal(key, "must be a list of texts in quotes", item)
        return None if texts is None else tuple(texts)

    def counts(self, key: str, most: int) -> tuple[int, ...]:
        """A list of integers from 0 to `most`, empty where the key is missing or null."""
        counts = self.items(key) or []
        for item in counts:
            if not _is_integer(item) or not 0 <= item <= most:
                raise self.refusal(key, f"must be a list of integers from 0 to {most:,}", item)
        return tuple(counts)

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """A token's id, None where the key is missing or null."""
        value = self._value(key, default, False)
        if value is None:
            return None
        if not _is_token_id(value):
            raise self.refusal(key, "must be a token id", value)
        return int(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token's id or a list of them, empty where the key is missing or null."""
        value = self._value(key, None, False)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if len(listed) > _MAX_TOKEN_IDS or not all(_is_token_id(each) for each in listed):
            raise self.refusal(key, "must be a token id or a list of them", value)
        return tuple(listed)

    def refusal(self, key: str, wanted: str, value: object) -> AwqEdgeError:
        """The error about a key's value."""
        missing = value is None and key not in self.values
        state = "it is missing" if missing else f"found {show(value)}"
        return self._error(f"{self.source}: '{self._prefix}{key}' {wanted}, {state}")

    def _with(self, values: Mapping[str, Any]) -> ConfigKeys:
        """The same object with other values; keys that are read there count as read here."""
        keys = ConfigKeys(values, self.source, prefix=self._prefix, error=self._error)
        keys._read = self._read
        return keys

    def _value(self, key: str, default: Any, nullable: bool) -> Any:
        self._read.add(key)
        value = self.values.get(key, default)
        return default if value is None and nullable else value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond what a float holds
        return False


def _is_token_id(value: object) -> bool:
    return _is_integer(value) and 0 <= value <= MAX_TOKEN_ID  # type: ignore[operator]
