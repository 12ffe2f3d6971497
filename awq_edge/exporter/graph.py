"""A graph without weight data, and what nodes are appended with.

Built from a program, never traced: each constant has a `Weight` of its name, which is evaluated
when it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from awq_edge.program.weights import Dtype, Weight

INT32, INT64 = int(onnx.TensorProto.INT32), int(onnx.TensorProto.INT64)
BOOL, FLOAT32 = int(onnx.TensorProto.BOOL), int(onnx.TensorProto.FLOAT)
ONNX_TYPES: dict[Dtype, int] = {
    "float16": int(onnx.TensorProto.FLOAT16),
    "bfloat16": int(onnx.TensorProto.BFLOAT16),
    "float32": FLOAT32,
    "int32": INT32,
    "uint8": int(onnx.TensorProto.UINT8),
    "int8": int(onnx.TensorProto.INT8),
    "uint4": int(onnx.TensorProto.UINT4),
    "int4": int(onnx.TensorProto.INT4),
}
BATCH, SEQUENCE, POSITIONS, CONTEXT = "batch", "sequence", "positions", "context"

Dims = Sequence[int | str]
Operand: TypeAlias = "gs.Variable | gs.Constant"


@dataclass
class DecoderGraph:
    """A graph and the weights of its constants, by name."""

    graph: gs.Graph
    weights: dict[str, Weight] = field(default_factory=dict)

    def used_weights(self) -> list[Weight]:
        """The weights that nodes read, in the order of execution."""
        names = dict.fromkeys(
            tensor.name
            for node in self.graph.nodes
            for tensor in node.inputs
            if isinstance(tensor, gs.Constant)
        )
        return [self.weights[name] for name in names if name in self.weights]


def weight_constant(weight: Weight) -> gs.Constant:
    """A constant whose data lies outside the model, at a place that is filled in later."""
    proto = onnx.TensorProto(
        name=weight.name,
        data_type=ONNX_TYPES[weight.dtype],
        dims=weight.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    return gs.Constant(weight.name, LazyValues(proto))


def inline_constant(name: str, values: Any, dtype: type[np.generic] = np.int64) -> gs.Constant:
    """A small constant that lies in the model itself: shapes, axes."""
    return gs.Constant(name, np.array(values, dtype=dtype))


class GraphBuilder:
    """Appends nodes to a graph. Outputs are named after their node, `<node>/output_<i>`."""

    def __init__(self, target: DecoderGraph) -> None:
        self.target = target
        self._constants: dict[str, gs.Constant] = {}

    def variable(self, name: str, dtype: int, shape: Dims) -> gs.Variable:
        """A tensor that a run computes or is given. dtype: of onnx.TensorProto."""
        return gs.Variable(name, dtype=dtype, shape=list(shape))

    def weight(self, weight: Weight) -> gs.Constant:
        """The constant of a weight; one constant however many nodes read it."""
        if weight.name not in self._constants:
            self.target.weights[weight.name] = weight
            self._constants[weight.name] = weight_constant(weight)
        return self._constants[weight.name]

    def inline(self, name: str, values: Any, dtype: type[np.generic] = np.int64) -> gs.Constant:
        """See `inline_constant`; one constant a name."""
        if name not in self._constants:
            self._constants[name] = inline_constant(name, values, dtype)
        return self._constants[name]

    def node(
        self,
        op: str,
        name: str,
        inputs: Sequence[gs.Variable | gs.Constant | None],
        outputs: Sequence[gs.Variable | tuple[int, Dims]],
        attributes: Mapping[str, Any] | None = None,
        domain: str | None = None,
    ) -> list[gs.Variable]:
        """Append a node; returns its outputs.

        inputs: None where an optional one is absent. outputs: (dtype, shape), or a variable that
        exists, such as an output of the graph.
        """
        made = [
            self.variable(f"{name}/output_{i}", *output) if isinstance(output, tuple) else output
            for i, output in enumerate(outputs)
        ]
        given = [gs.Variable.empty() if tensor is None else tensor for tensor in inputs]
        while given and given[-1].is_empty():
            given.pop()
        self.target.graph.nodes.append(
            gs.Node(op, name, dict(attributes or {}), given, made, domain)
        )
        return made


def module_path(module: str) -> str:
    """Node path of a module: "model.layers.0.mlp" -> "/model/layers.0/mlp"."""
    path = ""
    for part in module.split("."):
        path += f".{part}" if part.isdigit() else f"/{part}"
    return path


def to_model(decoder_graph: DecoderGraph, ir_version: int) -> onnx.ModelProto:
    """The model proto; constants with weights are external and have no place in a file yet."""
    model: onnx.ModelProto = gs.export_onnx(
        decoder_graph.graph, ir_version=ir_version, producer_name="awq-edge"
    )
    return model
