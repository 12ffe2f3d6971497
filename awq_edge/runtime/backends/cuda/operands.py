"""What a call works on: values of a program by their names, resolved to addresses and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from awq_edge.artifacts.input_files import show
from awq_edge.errors import ArtifactError
from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.program import ITEM_BYTES, Call, CudaProgram


class Kernels(Protocol):
    """The kernel library; see `awq_edge.kernels.kernels.KernelLibrary`."""

    def call(self, name: str, *arguments: Any) -> None: ...

    def size(self, name: str, *arguments: Any) -> int: ...


@dataclass(frozen=True)
class Tools:
    """What launches share. dtype: of activations, of `awq_edge.kernels.interface.Dtype`. context:
    positions of the state. positions: of the rotary tables."""

    kernels: Kernels
    device: Device
    dtype: int
    vocab_size: int
    context: int
    positions: int

    def call(self, name: str, *arguments: object) -> None:
        """Queue a kernel on the device's stream."""
        self.kernels.call(name, *arguments, self.device.stream)

    def size(self, name: str, *arguments: object) -> int:
        """The workspace that a kernel asks for, in bytes."""
        return self.kernels.size(name, *arguments)


@dataclass(frozen=True)
class Place:
    """Rows on the device. stride: elements from row to row."""

    address: int
    width: int
    stride: int
    dtype: str


@dataclass(frozen=True)
class Memory:
    """Addresses of a program's values by name, in one memory map. inputs: of the program."""

    program: CudaProgram
    context: int
    tensors: Mapping[str, int]
    state: Mapping[str, int]
    buffers: Mapping[str, int]
    inputs: Mapping[str, int]

    def place(self, name: str) -> Place | None:
        """A buffer, or a view of one; None for other names."""
        program = self.program
        view = program.views.get(name)
        whole = name if view is None else view.buffer
        buffer = program.buffers.get(whole)
        if buffer is None:
            return None
        address, width = self.buffers[whole], buffer.width
        if view is not None:
            address += view.column * ITEM_BYTES[buffer.dtype]
            width = view.width
        return Place(address, width, buffer.width, buffer.dtype)


class Operands:
    """The operands of one call. Every method raises ArtifactError for one that is missing, or not
    what the operation takes."""

    def __init__(self, call: Call, memory: Memory) -> None:
        self._call = call
        self._memory = memory

    def input(self, role: str) -> Place:
        """Rows that the call reads."""
        return self._place(self._call.inputs, role)

    def optional_input(self, role: str) -> Place | None:
        return self.input(role) if role in self._call.inputs else None

    def has_input(self, role: str) -> bool:
        return role in self._call.inputs

    def output(self, role: str, dtype: str | None = None) -> Place:
        """Rows that the call writes. dtype: None for the activations'."""
        return self._place(self._call.outputs, role, dtype)

    def optional_output(self, role: str) -> Place | None:
        return self.output(role) if role in self._call.outputs else None

    def tensor(self, role: str, shape: tuple[int, ...], dtype: str | None = None) -> int:
        """Address of a weight. dtype: None for the activations'."""
        program = self._memory.program
        name = self._named(self._call.inputs, role)
        place = program.tensors.get(name)
        wanted = (dtype or program.activation_dtype, shape)
        if place is None or (place.dtype, place.shape) != wanted:
            is_there = "no tensor" if place is None else f"{place.dtype} {list(place.shape)}"
            raise self._error(f"'{role}' is {is_there}, not {wanted[0]} {list(shape)}")
        return self._memory.tensors[name]

    def optional_tensor(
        self, role: str, shape: tuple[int, ...], dtype: str | None = None
    ) -> int | None:
        return self.tensor(role, shape, dtype) if role in self._call.inputs else None

    def table(self, role: str, width: int) -> tuple[int, int]:
        """Address and rows of a weight [rows, width], whatever their number."""
        place = self._memory.program.tensors.get(self._named(self._call.inputs, role))
        rows = 0 if place is None or not place.shape else place.shape[0]
        return self.tensor(role, (rows, width)), rows

    def state(self, role: str, shape: tuple[int, ...]) -> int:
        """Address of a state in the activations' type, which the call reads and writes."""
        program, name = self._memory.program, self._named(self._call.inputs, role)
        self.require(self._call.outputs.get(role) == name, f"'{role}' is not written in place")
        state = program.state.get(name)
        if state is None or state.dtype != program.activation_dtype:
            raise self._error(f"'{role}' is no state in {program.activation_dtype}")
        sizes = state.sizes(self._memory.context)
        self.require(sizes == shape, f"'{role}' is {list(sizes)}, not {list(shape)}")
        return self._memory.state[name]

    def address(self, role: str) -> int:
        """Address of an input of the program."""
        name = self._named(self._call.inputs, role)
        self.require(name in self._memory.inputs, f"'{role}' is no input of the program")
        return self._memory.inputs[name]

    def number(self, name: str) -> float:
        """An attribute."""
        value = self._call.attributes.get(name)
        if value is None or isinstance(value, str):
            raise self._error(f"attribute '{name}' is no number")
        return float(value)

    def text(self, name: str) -> str:
        """An attribute that is a word."""
        value = self._call.attributes.get(name)
        if not isinstance(value, str):
            raise self._error(f"attribute '{name}' is no word")
        return value

    def integer(self, name: str) -> int:
        """An attribute that is a whole number, from 0 to what int32 holds."""
        value = self.number(name)
        self.require(0 <= value < 2**31 and value == int(value), f"attribute '{name}' is {value:g}")
        return int(value)

    def require(self, condition: bool, problem: str) -> None:
        """Raise ArtifactError with the problem where the condition does not hold."""
        if not condition:
            raise self._error(problem)

    def _place(self, values: Mapping[str, str], role: str, dtype: str | None = None) -> Place:
        place = self._memory.place(self._named(values, role))
        wanted = dtype or self._memory.program.activation_dtype
        if place is None or place.dtype != wanted:
            raise self._error(f"'{role}' is no buffer of {wanted}")
        return place

    def _named(self, values: Mapping[str, str], role: str) -> str:
        if role not in values:
            raise self._error(f"'{role}' is missing")
        return values[role]

    def _error(self, problem: str) -> ArtifactError:
        call = self._call
        return ArtifactError(
            f"call {show(call.operation)} of {show(call.name)}: {problem}; {CudaProgram.remedy}"
        )
