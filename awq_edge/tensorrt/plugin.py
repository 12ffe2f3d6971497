"""The plugins for TensorRT in Python: `register()`, then parse, build and run as usual.

An engine built with these runs with libawq_edge_plugin.so, and the other way round: name, version,
namespace and fields are the same (contract.py).

    ONNX node ── create_plugin ── OpPlugin ──┬── build: dtypes, shapes, formats, tactics, workspace
      or engine      (creator)               └── run: on_shape_change, enqueue ── kernel library
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from awq_edge.errors import AwqEdgeError, ConfigError, RuntimeUnavailableError
from awq_edge.kernels.kernels import KernelLibrary, load_kernels
from awq_edge.tensorrt.contract import OPS, PLUGIN_NAMESPACE, PLUGIN_VERSION
from awq_edge.tensorrt.module import load_tensorrt
from awq_edge.tensorrt.op_calls import CALLS, OpCall
from awq_edge.tensorrt.op_contract import UNKNOWN, Number, Op, allowed_dtypes, describe

__all__ = ["register"]

# TensorRT's DataType by numpy's name.
_DTYPES = {
    "float16": "HALF",
    "bfloat16": "BF16",
    "float32": "FLOAT",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
}


def register(tensorrt: ModuleType | None = None, library: KernelLibrary | None = None) -> None:
    """Make both operators known to TensorRT in this process; a second call changes nothing.

    tensorrt: the module; None calls load_tensorrt().
    library: the kernels; None loads them.

    Raises RuntimeUnavailableError where TensorRT or the kernels cannot be loaded, or where a plugin
    of the same name and other fields is registered.
    """
    trt: Any = tensorrt or load_tensorrt()
    registry = trt.get_plugin_registry()
    # Asking for a creator that is not there would be an error in TensorRT's log.
    creators = {(c.name, c.plugin_version, c.plugin_namespace): c for c in registry.all_creators}
    for op in OPS.values():
        known = creators.get((op.name, PLUGIN_VERSION, PLUGIN_NAMESPACE))
        if known is None:
            library = library or load_kernels()
            registry.register_creator(_creator(trt, op, library), PLUGIN_NAMESPACE)
            continue
        fields = [field.name for field in known.field_names]
        if fields != [attribute.name for attribute in op.attributes]:
            raise RuntimeUnavailableError(
                f"another plugin {op.name}, version {PLUGIN_VERSION}, is registered, with the "
                f"fields {', '.join(fields)}; it is not this version's: load one of them only"
            )


class OpPlugin:
    """One node: the answers to every capability of IPluginV3, from the contract.

    TensorRT's classes are mixed in by `_plugin_class`, because their module is known at run time
    only.
    """

    def __init__(self, trt: Any, op: Op, library: KernelLibrary, values: dict[str, Number]) -> None:
        for base in _capabilities(trt):
            base.__init__(self)
        self.trt = trt
        self.op = op
        self.library = library
        self.values = values
        self.call: OpCall = CALLS[op.name](values, library)
        self._fields = _Fields(trt, op, values)
        # What TensorRT reads as attributes.
        self.plugin_name = op.name
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = PLUGIN_NAMESPACE
        self.num_outputs = len(op.outputs_of(values))
        self.timing_cache_id = describe(values)
        self.metadata_string = describe(values)

    # ---- IPluginV3

    def get_capability_interface(self, type: Any) -> OpPlugin:
        return self

    def clone(self) -> OpPlugin:
        copy = type(self)(self.trt, self.op, self.library, self.values)
        copy.call.tactic = self.call.tactic
        return copy

    # ---- build

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        names = [self._name_of(dtype) for dtype in input_types]
        self.op.check_dtypes(self.values, names)
        return [
            getattr(self.trt.DataType, _DTYPES[allowed_dtypes(tensor, self.values, names[0])[0]])
            for tensor in self.op.outputs_of(self.values)
        ]

    def get_output_shapes(
        self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expr_builder: Any
    ) -> list[Any]:
        known: dict[str, int] = self.op.check_shapes(
            self.values, [[_constant(size) for size in shape] for shape in inputs]
        )
        # A dimension that is not known yet is the expression of the first input that has it.
        expressions: dict[str, Any] = {}
        for tensor, shape in zip(self.op.inputs_of(self.values), inputs, strict=True):
            sizes = [shape[axis] for axis in range(len(shape))]
            for name, size in zip(reversed(tensor.shape), reversed(sizes), strict=False):
                expressions.setdefault(name, size)
        leading = [inputs[0][axis] for axis in range(len(inputs[0]) - 1)]
        shapes = []
        for tensor in self.op.outputs_of(self.values):
            sizes = list(leading) if tensor.shape[0] == "..." else []
            for name in tensor.shape:
                if name in known:
                    sizes.append(expr_builder.constant(known[name]))
                elif name != "...":
                    sizes.append(expressions[name])
            shapes.append(self.trt.DimsExprs(sizes))
        return shapes

    def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
        self.op.check_count(self.values, num_inputs)
        description = in_out[pos].desc
        if description.format != self.trt.TensorFormat.LINEAR:
            return False
        inputs, outputs = self.op.inputs_of(self.values), self.op.outputs_of(self.values)
        allowed = allowed_dtypes(
            (*inputs, *outputs)[pos], self.values, self._name_of(in_out[0].desc.type)
        )
        return self._name_of(description.type) in allowed

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        first = self._name_of(inputs[0].desc.type)
        smallest = [list(described.min) for described in inputs]
        largest = [list(described.max) for described in inputs]
        for shapes in (smallest, largest):
            self.op.check_shapes(self.values, shapes)
        self.call.configure(first, smallest, largest)

    def get_valid_tactics(self) -> list[int]:
        return self.call.tactics()

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        first = self._name_of(inputs[0].desc.type)
        return self.call.workspace(first, [list(described.max) for described in inputs])

    # ---- run

    def set_tactic(self, tactic: int) -> None:
        self.call.tactic = tactic

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.op.check_dtypes(self.values, [self._name_of(tensor.type) for tensor in inputs])
        shapes = [list(tensor.dims) for tensor in inputs]
        self.call.prepare(
            self._name_of(inputs[0].type), shapes, self.op.check_shapes(self.values, shapes)
        )

    def enqueue(
        self,
        input_desc: Sequence[Any],
        output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        self.call.enqueue(inputs, outputs, workspace, stream)

    def attach_to_context(self, resource_context: Any) -> OpPlugin:
        return self.clone()

    def get_fields_to_serialize(self) -> Any:
        return self._fields.collection

    def _name_of(self, dtype: Any) -> str:
        """numpy's name of a TensorRT DataType; for one that no operator takes, TensorRT's."""
        for name, ours in _DTYPES.items():
            if dtype == getattr(self.trt.DataType, ours):
                return name
        return str(dtype.name).lower()


def _capabilities(trt: Any) -> tuple[Any, ...]:
    return (
        trt.IPluginV3,
        trt.IPluginV3OneCore,
        trt.IPluginV3OneBuild,
        trt.IPluginV3OneRuntime,
    )


def _creator(trt: Any, op: Op, library: KernelLibrary) -> Any:
    """The object that TensorRT's registry keeps for one operator."""
    plugin_class: Any = type(f"{op.name}Plugin", (OpPlugin, *_capabilities(trt)), {})

    def initialize(self: Any) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name = op.name
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = PLUGIN_NAMESPACE
        self.declared = _Fields(trt, op, None)
        self.field_names = self.declared.collection

    def create_plugin(self: Any, name: str, field_collection: Any, phase: Any) -> Any:
        try:
            given = {field.name: _value(op, field) for field in field_collection}
            return plugin_class(trt, op, library, op.read(given))
        except AwqEdgeError as error:
            raise type(error)(f"{name}: {error}" if name else str(error)) from None

    methods = {"__init__": initialize, "create_plugin": create_plugin}
    return type(f"{op.name}Creator", (trt.IPluginCreatorV3One,), methods)()


class _Fields:
    """Plugin fields of a node, or, without values, their declaration by a creator.

    TensorRT keeps addresses only: the arrays, the fields and their collection live as long as the
    plugin, or it would serialize whatever has taken their place.
    """

    def __init__(self, trt: Any, op: Op, values: dict[str, Number] | None) -> None:
        import numpy as np

        self._arrays = []
        self._fields = []
        for attribute in op.attributes:
            dtype, field_type = {
                "int": (np.int32, trt.PluginFieldType.INT32),
                "float": (np.float32, trt.PluginFieldType.FLOAT32),
            }[attribute.type]
            value = [] if values is None else [values[attribute.name]]
            self._arrays.append(np.array(value, dtype=dtype))
            self._fields.append(trt.PluginField(attribute.name, self._arrays[-1], field_type))
        self.collection = trt.PluginFieldCollection(self._fields)


def _value(op: Op, field: Any) -> Number:
    """The number in a field; TensorRT's parser makes them from the node's attributes."""
    kinds = {attribute.name: attribute.type for attribute in op.attributes}
    kind = kinds.get(field.name, "int")
    allowed = ("INT32", "INT64") if kind == "int" else ("FLOAT32", "FLOAT64")
    if field.type.name not in allowed or field.size != 1:
        raise ConfigError(
            f"{op.name}: {field.name} is {field.size} x {field.type.name}, must be one "
            f"{' or '.join(allowed)}"
        )
    value = field.data[0]
    return int(value) if kind == "int" else float(value)


def _constant(size: Any) -> int:
    """The number that a dimension's expression is, or UNKNOWN."""
    return int(size.get_constant_value()) if size.is_constant() else UNKNOWN
