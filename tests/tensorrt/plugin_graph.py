"""An ONNX graph with both operators of the plugin, small, with changes to one node at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from awq_edge.tensorrt.contract import (
    CACHED_ATTENTION,
    DOMAIN,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    W4A16_LINEAR,
)

HEADS, KV_HEADS, HEAD_SIZE, CONTEXT = 4, 2, 32, 256
HIDDEN = HEADS * HEAD_SIZE
_ACTIVATIONS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_NUMPY = {"float16": np.float16, "float32": np.float32, "int32": np.int32}

ATTENTION = {
    "num_heads": HEADS,
    "num_kv_heads": KV_HEADS,
    "head_size": HEAD_SIZE,
    "rotary_size": HEAD_SIZE,
    "scale": 0.125,
}


@dataclass
class Change:
    """What is different about one node. drop: attributes that it lacks; shape, dtype: of inputs."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    drop: Sequence[str] = ()
    shape: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dtype: Mapping[str, str] = field(default_factory=dict)
    without: Sequence[str] = ()


def linear_attributes(in_features: int, out_features: int, **others: int) -> dict[str, int]:
    return {
        "bits": 4,
        "group_size": 64,
        "in_features": in_features,
        "out_features": out_features,
        "layout_version": 1,
        **others,
    }


def build_model(
    activations: str = "float16",
    *,
    attention: Mapping[str, Any] = {},
    linear: Change | None = None,
    cache: Change | None = None,
) -> onnx.ModelProto:
    """x -- q/k/v (merged or three linears) -- CachedAttention -- o -- y.

    attention: attributes on top of ATTENTION. linear: changes to the last linear; cache: to the
    attention node.
    """
    values = CACHED_ATTENTION.read({**ATTENTION, **attention})
    graph = _Graph(activations)
    widths = {"q": HIDDEN, "k": KV_HEADS * HEAD_SIZE, "v": KV_HEADS * HEAD_SIZE}
    if values["merged_qkv"]:
        widths = {"qkv": sum(widths.values())}
    for name, width in widths.items():
        graph.linear(name, "x", linear_attributes(HIDDEN, width, has_zeros=1))
    graph.attention({**ATTENTION, **attention}, cache or Change())
    graph.linear("o", "y_heads", linear_attributes(HIDDEN, HIDDEN, has_bias=1), linear or Change())
    graph.outputs.append(graph.value("o", graph.activations, ["B", "S", HIDDEN]))
    graph.inputs.append(graph.value("x", graph.activations, ["B", "S", HIDDEN]))
    made = helper.make_graph(graph.nodes, "both", graph.inputs, graph.outputs, graph.constants)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=11)


class _Graph:
    def __init__(self, activations: str) -> None:
        self.activations = activations
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []

    def value(self, name: str, dtype: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
        element = _ACTIVATIONS.get(dtype) or getattr(TensorProto, dtype.upper(), TensorProto.FLOAT)
        return helper.make_tensor_value_info(name, element, shape)

    def constant(self, name: str, dtype: str, shape: Sequence[int]) -> str:
        if dtype == "bfloat16":
            count = int(np.prod(shape))
            self.constants.append(
                helper.make_tensor(name, TensorProto.BFLOAT16, shape, [0.5] * count)
            )
        elif dtype == "int32":
            codes = self.random.integers(-(2**31), 2**31, size=shape, dtype=np.int64)
            self.constants.append(numpy_helper.from_array(codes.astype(np.int32), name))
        else:
            numbers = self.random.standard_normal(shape) / 64
            self.constants.append(numpy_helper.from_array(numbers.astype(_NUMPY[dtype]), name))
        return name

    def linear(
        self, output: str, x: str, attributes: Mapping[str, int], change: Change | None = None
    ) -> None:
        change = change or Change()
        values = W4A16_LINEAR.read(attributes)
        sizes = W4A16_LINEAR.sizes(values)
        inputs = [x]
        for tensor in W4A16_LINEAR.inputs_of(values)[1:]:
            if tensor.name in change.without:
                continue
            shape = [int(size) if size.isdigit() else sizes[size] for size in tensor.shape]
            dtype = self.activations if tensor.dtype == "activations" else tensor.dtype
            inputs.append(
                self.constant(
                    f"{output}.{tensor.name}",
                    change.dtype.get(tensor.name, dtype),
                    change.shape.get(tensor.name, shape),
                )
            )
        self.node(W4A16_LINEAR.name, inputs, [output], attributes, change)

    def attention(self, attributes: Mapping[str, Any], change: Change) -> None:
        values = CACHED_ATTENTION.read(attributes)
        cache_dtype = "int8" if values["int8_cache"] else self.activations
        shapes: dict[str, list[int | str]] = {
            "past_length": ["B"],
            "cosine": [CONTEXT, HEAD_SIZE // 2],
            "sine": [CONTEXT, HEAD_SIZE // 2],
            "q_norm": [HEAD_SIZE],
            "k_norm": [HEAD_SIZE],
        }
        inputs = []
        for tensor in CACHED_ATTENTION.inputs_of(values):
            name = tensor.name
            if name in ("q", "k", "v", "qkv"):
                inputs.append(name)
                continue
            dtype = {"cache": cache_dtype, "activations": self.activations}.get(
                tensor.dtype, tensor.dtype
            )
            dtype = change.dtype.get(name, dtype)
            shape = list(change.shape.get(name, shapes.get(name, self.cache_shape(tensor.shape))))
            if name in ("cosine", "sine", "q_norm", "k_norm"):
                self.constant(name, dtype, [int(size) for size in shape])
            else:
                self.inputs.append(self.value(name, dtype, shape))
            inputs.append(name)
        outputs = ["y_heads"]
        for tensor in CACHED_ATTENTION.outputs_of(values)[1:]:
            dtype = cache_dtype if tensor.dtype == "cache" else tensor.dtype
            shape = list(change.shape.get(tensor.alias, self.cache_shape(tensor.shape)))
            self.outputs.append(self.value(tensor.name, dtype, shape))
            outputs.append(tensor.name)
        self.node(CACHED_ATTENTION.name, inputs, outputs, attributes, change)

    def cache_shape(self, names: Sequence[str]) -> list[int | str]:
        return ["B", KV_HEADS, CONTEXT, HEAD_SIZE][: len(names)]

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Any],
        change: Change,
    ) -> None:
        given = {**attributes, **change.attributes}
        for name in change.drop:
            del given[name]
        self.nodes.append(
            helper.make_node(
                op,
                inputs,
                outputs,
                name=f"/{outputs[0]}/{op}",
                domain=DOMAIN,
                plugin_version=PLUGIN_VERSION,
                plugin_namespace=PLUGIN_NAMESPACE,
                **given,
            )
        )
