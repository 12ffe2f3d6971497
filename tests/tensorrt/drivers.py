"""Both plugins behind one interface: what TensorRT asks of them, in the order it does."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_double, c_int32, c_int64, c_uint64, c_void_p
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from awq_edge.errors import AwqEdgeError
from awq_edge.kernels.kernels import KernelLibrary
from awq_edge.tensorrt.contract import PLUGIN_NAMESPACE, PLUGIN_VERSION
from awq_edge.tensorrt.op_contract import Number
from awq_edge.tensorrt.plugin import register

from . import stub_tensorrt
from .stub_tensorrt import DataType, PluginFieldType

Shapes = Sequence[Sequence[int]]
BUILD, RUNTIME = 0, 1


class Refused(Exception):
    """What the plugin said."""


class Driver(Protocol):
    def create(self, op: str, fields: dict[str, Number], phase: int = BUILD) -> Plugin: ...
    def declared_fields(self, op: str) -> str: ...


class Plugin(Protocol):
    """Types are DataTypes. Every method raises Refused where the plugin refuses."""

    def serialized_fields(self) -> str: ...
    def timing_cache_id(self) -> str: ...
    def output_types(self, types: Sequence[int]) -> list[int]: ...
    def supports(self, position: int, inputs: int, types: Sequence[int], format: int) -> bool: ...
    def configure(self, types: Sequence[int], smallest: Shapes, largest: Shapes) -> None: ...
    def tactics(self) -> list[int]: ...
    def workspace(self, types: Sequence[int], largest: Shapes) -> int: ...
    def set_tactic(self, tactic: int) -> None: ...
    def attach(self) -> None: ...
    def shape_change(self, types: Sequence[int], shapes: Shapes) -> None: ...
    def enqueue(
        self, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None: ...


def field_type(value: Number) -> PluginFieldType:
    return PluginFieldType.INT32 if isinstance(value, int) else PluginFieldType.FLOAT32


class PythonDriver:
    def __init__(self, library: KernelLibrary) -> None:
        self.trt = stub_tensorrt.make_module()
        register(self.trt, library)

    def _creator(self, op: str) -> Any:
        return self.trt.get_plugin_registry().creators[op, PLUGIN_VERSION, PLUGIN_NAMESPACE]

    def declared_fields(self, op: str) -> str:
        return ", ".join(field.name for field in self._creator(op).field_names)

    def create(self, op: str, fields: dict[str, Number], phase: int = BUILD) -> Plugin:
        given = [
            stub_tensorrt.PluginField(
                name,
                np.array([value], dtype=np.int32 if isinstance(value, int) else np.float32),
                field_type(value),
            )
            for name, value in fields.items()
        ]
        return PythonPlugin(_told(self._creator(op).create_plugin, "node", given, phase))


class PythonPlugin:
    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin

    def serialized_fields(self) -> str:
        texts = []
        for field in self.plugin.get_fields_to_serialize():
            (value,) = field.data
            texts.append(f"{field.name}={value:.7g}")
        return ", ".join(texts)

    def timing_cache_id(self) -> str:
        return str(self.plugin.timing_cache_id)

    def output_types(self, types: Sequence[int]) -> list[int]:
        found = _told(self.plugin.get_output_data_types, [DataType(type) for type in types])
        return [int(type) for type in found]

    def supports(self, position: int, inputs: int, types: Sequence[int], format: int) -> bool:
        tensors = [
            stub_tensorrt.described(type, [], [], format if index == position else 0)
            for index, type in enumerate(types)
        ]
        return bool(_told(self.plugin.supports_format_combination, position, tensors, inputs))

    def configure(self, types: Sequence[int], smallest: Shapes, largest: Shapes) -> None:
        _told(self.plugin.configure_plugin, _described(types, smallest, largest), [])

    def tactics(self) -> list[int]:
        return list(self.plugin.get_valid_tactics())

    def workspace(self, types: Sequence[int], largest: Shapes) -> int:
        described = _described(types, largest, largest)
        return int(_told(self.plugin.get_workspace_size, described, []))

    def set_tactic(self, tactic: int) -> None:
        self.plugin.set_tactic(tactic)

    def attach(self) -> None:
        self.plugin = self.plugin.attach_to_context(None)

    def shape_change(self, types: Sequence[int], shapes: Shapes) -> None:
        tensors = [
            SimpleNamespace(type=DataType(type), dims=list(shape))
            for type, shape in zip(types, shapes, strict=True)
        ]
        _told(self.plugin.on_shape_change, tensors, [])

    def enqueue(
        self, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None:
        _told(self.plugin.enqueue, [], [], inputs, outputs, workspace, stream)


def _told(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function`, with its errors as Refused."""
    try:
        return function(*arguments)
    except AwqEdgeError as error:
        raise Refused(str(error)) from None


def _described(types: Sequence[int], smallest: Shapes, largest: Shapes) -> list[Any]:
    return [
        stub_tensorrt.described(type, list(least), list(most))
        for type, least, most in zip(types, smallest, largest, strict=True)
    ]


class CppDriver:
    """The C++ plugin, through plugin_host.cpp. errors: reads what it has written to stderr."""

    def __init__(self, host: Path, library: Path, errors: Callable[[], str]) -> None:
        self.host = ctypes.CDLL(str(host))
        self.library = str(library).encode()
        self.errors = errors
        for name in ("host_creator", "host_create", "host_attach"):
            getattr(self.host, name).restype = c_void_p
        for name in ("host_declared_fields", "host_serialized_fields", "host_timing_cache_id"):
            getattr(self.host, name).restype = c_char_p
            getattr(self.host, name).argtypes = (c_void_p,)
        self.host.host_workspace.restype = c_uint64

    def _creator(self, op: str) -> c_void_p:
        found = self.host.host_creator(self.library, op.encode())
        assert found, self.errors()
        return c_void_p(found)

    def declared_fields(self, op: str) -> str:
        text: bytes = self.host.host_declared_fields(self._creator(op))
        return text.decode()

    def create(self, op: str, fields: dict[str, Number], phase: int = BUILD) -> Plugin:
        count = len(fields)
        made = self.host.host_create(
            self._creator(op),
            count,
            (c_char_p * count)(*(name.encode() for name in fields)),
            (c_int32 * count)(*(field_type(value) for value in fields.values())),
            (c_double * count)(*fields.values()),
            phase,
        )
        if not made:
            raise Refused(self.errors())
        return CppPlugin(self, made)


class CppPlugin:
    def __init__(self, driver: CppDriver, address: int) -> None:
        self.driver = driver
        self.host = driver.host
        self.address = c_void_p(address)

    def __del__(self) -> None:
        self.host.host_destroy(self.address)

    def _done(self, status: int) -> None:
        if status < 0:
            raise Refused(self.driver.errors())

    def serialized_fields(self) -> str:
        text: bytes = self.host.host_serialized_fields(self.address)
        return text.decode()

    def timing_cache_id(self) -> str:
        text: bytes = self.host.host_timing_cache_id(self.address)
        return text.decode()

    def output_types(self, types: Sequence[int]) -> list[int]:
        found = (c_int32 * 8)()
        count = self.host.host_output_types(self.address, len(types), _int32(types), found)
        self._done(count)
        return list(found[:count])

    def supports(self, position: int, inputs: int, types: Sequence[int], format: int) -> bool:
        outputs = len(types) - inputs
        return bool(
            self.host.host_supports(self.address, position, inputs, outputs, _int32(types), format)
        )

    def configure(self, types: Sequence[int], smallest: Shapes, largest: Shapes) -> None:
        arguments = (*_tensors(types, smallest), _int64(largest))
        self._done(self.host.host_configure(self.address, *arguments))

    def tactics(self) -> list[int]:
        found = (c_int32 * 8)()
        count = self.host.host_tactics(self.address, found)
        self._done(count)
        return list(found[:count])

    def workspace(self, types: Sequence[int], largest: Shapes) -> int:
        bytes_ = int(self.host.host_workspace(self.address, *_tensors(types, largest)))
        errors = self.driver.errors()
        if errors:
            raise Refused(errors)
        return bytes_

    def set_tactic(self, tactic: int) -> None:
        self._done(self.host.host_set_tactic(self.address, tactic))

    def attach(self) -> None:
        self.address = c_void_p(self.host.host_attach(self.address))

    def shape_change(self, types: Sequence[int], shapes: Shapes) -> None:
        self._done(self.host.host_shape_change(self.address, *_tensors(types, shapes)))

    def enqueue(
        self, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None:
        self._done(
            self.host.host_enqueue(
                self.address,
                (c_void_p * len(inputs))(*inputs),
                (c_void_p * len(outputs))(*outputs),
                c_void_p(workspace),
                c_void_p(stream),
            )
        )


def _int32(values: Sequence[int]) -> ctypes.Array[c_int32]:
    return (c_int32 * len(values))(*values)


def _int64(shapes: Shapes) -> ctypes.Array[c_int64]:
    flat = list(chain.from_iterable(shapes))
    return (c_int64 * len(flat))(*flat)


def _tensors(types: Sequence[int], shapes: Shapes) -> tuple[Any, ...]:
    return len(types), _int32(types), _int32([len(shape) for shape in shapes]), _int64(shapes)
