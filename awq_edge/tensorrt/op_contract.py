"""An operator's contract: its attributes, tensors and rules, and the checks against them.

The operators are in contract.py. plugins/tensorrt/op_contract.cpp makes the same checks in C++ and
refuses in the same words; tests drive both.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Literal

from awq_edge.errors import ConfigError

Number = int | float
Attributes = Mapping[str, Number]

# A dimension that is not known yet: TensorRT's own number for it.
UNKNOWN = -1
# What a Tensor of dtype "activations" may be; one of them per node.
ACTIVATIONS = ("float16", "bfloat16")


@dataclass(frozen=True)
class Attribute:
    """An attribute of the ONNX node, which is a field of the plugin under the same name.

    default: None where the attribute has to be given.
    choices: the only values; where there are none, any from minimum to maximum, both included.
    minimum, maximum: None is no limit.
    """

    name: str
    meaning: str
    type: Literal["int", "float"] = "int"
    default: Number | None = None
    choices: tuple[int, ...] = ()
    minimum: Number | None = None
    maximum: Number | None = None

    def refusal(self, value: Number) -> str:
        """The range that `value` is out of, in words, or an empty string."""
        if self.choices and value not in self.choices:
            *others, last = map(str, self.choices)
            return f"must be {', '.join(others)}{' or ' if others else ''}{last}"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {number(self.minimum)}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {number(self.maximum)}"
        return ""


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    dtype: "activations", "float16", "float32", "int32", "int64", or "cache" (activations, or int8
    where int8_cache is 1).
    shape: names or sizes of dimensions, "..." for any number of leading ones.
    needs: the attribute without which the tensor is left out ("!name": with which it is);
    the others close up, because TensorRT refuses empty inputs.
    alias: of an output, the input that it may share memory with.
    """

    name: str
    dtype: str
    shape: tuple[str, ...]
    meaning: str
    needs: str = ""
    alias: str = ""

    def present(self, attributes: Attributes) -> bool:
        if not self.needs:
            return True
        return bool(attributes[self.needs.lstrip("!")]) != self.needs.startswith("!")


@dataclass(frozen=True)
class Conflict:
    """Attributes that are each in range and do not go together.

    condition: an expression of them that is true then.
    message: with their values as {name}.
    """

    condition: str
    message: str


@dataclass(frozen=True)
class Op:
    """An operator: its attributes, tensors, and the rules between them.

    dimensions: of the tensors, by name, as expressions of the attributes. An attribute by whose
    name a tensor has a dimension is one itself.
    at_least: (name, other) where a dimension that the attributes do not fix must not be smaller
    than another one.

    Expressions are Python's over non-negative integers: + - * // %, comparisons, and, or, `a if c
    else b`; cpp_tables.py writes them in C++.
    """

    name: str
    meaning: str
    attributes: tuple[Attribute, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    dimensions: Mapping[str, str]
    conflicts: tuple[Conflict, ...]
    at_least: tuple[tuple[str, str], ...] = ()

    def read(self, given: Attributes) -> dict[str, Number]:
        """Every attribute by name, defaults included.

        Raises ConfigError for one that is missing, unknown or out of range.
        """
        unknown = sorted(set(given) - {attribute.name for attribute in self.attributes})
        if unknown:
            known = ", ".join(attribute.name for attribute in self.attributes)
            raise ConfigError(f"{self.name}: no attribute {unknown[0]}; there are {known}")
        values: dict[str, Number] = {}
        for attribute in self.attributes:
            value = given.get(attribute.name, attribute.default)
            if value is None:
                raise ConfigError(f"{self.name}: the attribute {attribute.name} is missing")
            refusal = attribute.refusal(value)
            if refusal:
                raise ConfigError(f"{self.name}: {attribute.name} is {number(value)}, {refusal}")
            values[attribute.name] = int(value) if attribute.type == "int" else _float32(value)
        for conflict in self.conflicts:
            if evaluate(conflict.condition, values):
                raise ConfigError(f"{self.name}: {conflict.message.format_map(values)}")
        return values

    def expressions(self) -> dict[str, str]:
        """Every dimension that the attributes fix: name -> expression."""
        shapes = {name for tensor in (*self.inputs, *self.outputs) for name in tensor.shape}
        own = [attribute.name for attribute in self.attributes if attribute.name in shapes]
        return {**{name: name for name in own}, **self.dimensions}

    def sizes(self, attributes: Attributes) -> dict[str, int]:
        """Every dimension that the attributes fix, by name."""
        return {name: evaluate(text, attributes) for name, text in self.expressions().items()}

    def inputs_of(self, attributes: Attributes) -> tuple[Tensor, ...]:
        """The inputs that a node with these attributes has, in order."""
        return tuple(tensor for tensor in self.inputs if tensor.present(attributes))

    def outputs_of(self, attributes: Attributes) -> tuple[Tensor, ...]:
        """The outputs that a node with these attributes has, in order."""
        return tuple(tensor for tensor in self.outputs if tensor.present(attributes))

    def check_count(self, attributes: Attributes, count: int) -> None:
        """Raises ConfigError unless a node with these attributes has `count` inputs."""
        wanted = [tensor.name for tensor in self.inputs_of(attributes)]
        if count != len(wanted):
            raise ConfigError(
                f"{self.name}: {count} inputs, must be {len(wanted)} ({', '.join(wanted)}) "
                f"for {describe(attributes)}"
            )

    def check_dtypes(self, attributes: Attributes, dtypes: Sequence[str]) -> None:
        """Compare the inputs' dtypes with the contract.

        dtypes: numpy's names. Raises ConfigError naming the first that is wrong, also where their
        number is.
        """
        self.check_count(attributes, len(dtypes))
        for tensor, dtype in zip(self.inputs_of(attributes), dtypes, strict=True):
            allowed = allowed_dtypes(tensor, attributes, dtypes[0])
            if dtype not in allowed:
                raise ConfigError(
                    f"{self.name}: {tensor.name} is {dtype}, must be {' or '.join(allowed)}"
                )

    def check_shapes(
        self, attributes: Attributes, shapes: Sequence[Sequence[int]]
    ) -> dict[str, int]:
        """Compare the inputs' shapes with the contract; UNKNOWN fits everywhere.

        Returns the dimensions by name, those that the attributes do not fix included where known.
        Raises ConfigError with both shapes.
        """
        self.check_count(attributes, len(shapes))
        known = self.sizes(attributes)
        for tensor, shape in zip(self.inputs_of(attributes), shapes, strict=True):
            if not _fits(tensor, shape, known):
                wanted = [str(known.get(name, name)) for name in tensor.shape]
                raise ConfigError(
                    f"{self.name}: {tensor.name} is [{', '.join(map(str, shape))}], must be "
                    f"[{', '.join(wanted)}] = [{', '.join(tensor.shape)}] "
                    f"for {describe(attributes)}"
                )
        for name, other in self.at_least:
            if name in known and other in known and known[name] < known[other]:
                raise ConfigError(
                    f"{self.name}: {name} is {known[name]}, must be at least "
                    f"{other}, which is {known[other]}"
                )
        return known


def allowed_dtypes(tensor: Tensor, attributes: Attributes, first: str) -> tuple[str, ...]:
    """The dtypes that `tensor` may have where the first input, of the activations, has `first`."""
    if tensor.dtype == "cache" and attributes["int8_cache"]:
        return ("int8",)
    if tensor.dtype in ("activations", "cache"):
        return (first,) if first in ACTIVATIONS else ACTIVATIONS
    return (tensor.dtype,)


def describe(attributes: Attributes) -> str:
    """ "bits=4, group_size=128": for messages, timing-cache keys and engine inspectors."""
    return ", ".join(f"{name}={number(value)}" for name, value in attributes.items())


def evaluate(expression: str, attributes: Attributes) -> int:
    """The value of an expression of the contract."""
    return int(eval(_compiled(expression), {"__builtins__": {}}, dict(attributes)))


@cache
def _compiled(expression: str) -> CodeType:
    return compile(expression, "<contract>", "eval")


def number(value: Number) -> str:
    """A number as C's %d and %.7g write it."""
    return str(value) if isinstance(value, int) else f"{value:.7g}"


def _float32(value: Number) -> float:
    """The number that a field of the plugin holds."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _fits(tensor: Tensor, shape: Sequence[int], known: dict[str, int]) -> bool:
    """Compare `shape` with the tensor's; dimensions that it fixes first are added to known."""
    names = tensor.shape
    if names[0] == "...":
        if len(shape) < len(names) - 1:
            return False
        names, shape = names[1:], shape[len(shape) - len(names) + 1 :]
    if len(shape) != len(names):
        return False
    for name, size in zip(names, shape, strict=True):
        wanted = int(name) if name.isdigit() else known.get(name, size)
        if size not in (UNKNOWN, wanted):
            return False
        if size != UNKNOWN and not name.isdigit():
            known[name] = size
    return True
