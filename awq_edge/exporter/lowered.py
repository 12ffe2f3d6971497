"""A lowering's result, for the bundle writer: weights, and the file that says what they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx
import onnx_graphsurgeon as gs

from awq_edge.artifacts.directories import Form, PluginUse, TensorPort
from awq_edge.exporter.graph import DecoderGraph, to_model
from awq_edge.exporter.writer import WeightPlan, place_weights
from awq_edge.program.weights import Weight


@dataclass(frozen=True)
class Lowered:
    """A model for one runtime, not written yet.

    model_file, weights_file: their names in the bundle. weights: in the order of execution.
    render: the bytes of the model file, once it is known where the weights lie.
    minimum_version: of the runtime; None where any will do. arena_bytes: of a cuda program, bytes
    of activations a row. The rest belongs to graphs: the opset,
    accuracy_level and scale_groups (of MatMulNBits), inputs and outputs; linear, attention and
    plugin of those for TensorRT.
    """

    model_file: str
    weights_file: str
    weights: tuple[Weight, ...]
    render: Callable[[WeightPlan], bytes]
    minimum_version: str | None = None
    opset: int | None = None
    accuracy_level: int | None = None
    scale_groups: int = 0
    arena_bytes: Mapping[str, int] = field(default_factory=dict)
    linear: Form | None = None
    attention: Form | None = None
    plugin: PluginUse | None = None
    inputs: tuple[TensorPort, ...] = ()
    outputs: tuple[TensorPort, ...] = ()


GRAPH_FILE, GRAPH_WEIGHTS_FILE = "model.onnx", "model.onnx.data"


def lowered_graph(
    graph: DecoderGraph,
    ir_version: int,
    *,
    minimum_version: str | None = None,
    accuracy_level: int | None = None,
    scale_groups: int = 0,
    linear: Form | None = None,
    attention: Form | None = None,
    plugin: PluginUse | None = None,
) -> Lowered:
    """A lowered graph as ONNX, its weights in a file beside it."""

    def render(plan: WeightPlan) -> bytes:
        model = to_model(graph, ir_version)
        place_weights(model, plan, GRAPH_WEIGHTS_FILE)
        data: bytes = model.SerializeToString()
        return data

    return Lowered(
        model_file=GRAPH_FILE,
        weights_file=GRAPH_WEIGHTS_FILE,
        weights=tuple(graph.used_weights()),
        render=render,
        minimum_version=minimum_version,
        opset=graph.graph.opset,
        accuracy_level=accuracy_level,
        scale_groups=scale_groups,
        linear=linear,
        attention=attention,
        plugin=plugin,
        inputs=tuple(_port(tensor) for tensor in graph.graph.inputs),
        outputs=tuple(_port(tensor) for tensor in graph.graph.outputs),
    )


def _port(tensor: gs.Variable) -> TensorPort:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.dtype).name
    return TensorPort(name=tensor.name, dtype=dtype, shape=tuple(tensor.shape))
