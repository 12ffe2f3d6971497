"""Lowered graphs for TensorRT, run on the CPU: those without our plugin by onnxruntime, others by
onnx's reference evaluator with the plugin written out.

The plugin's W4A16Linear multiplies by the weight that `packing.unpack` finds in the kernels'
layout; its CachedAttention is the one of `reference.py` on q, k and v apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from awq_edge.exporter.graph import DecoderGraph
from awq_edge.kernels.packing import PackedWeight, unpack
from awq_edge.tensorrt.contract import CACHED_ATTENTION, OPS, W4A16_LINEAR

from . import reference
from .reference import evaluated_model

# What lies in a cache that was never written. The plugin does not read it; TensorRT's own layers
# multiply it by 0.
UNWRITTEN = {"plugin": np.nan, "native": 100.0}


class W4A16Linear(OpRun):
    op_domain = "awq_edge"

    def _run(self, *inputs, **attributes):  # type: ignore[no-untyped-def]
        values = contract_values(W4A16_LINEAR, attributes)
        names = [tensor.name for tensor in W4A16_LINEAR.inputs_of(values)]
        W4A16_LINEAR.check_shapes(values, [tensor.shape for tensor in inputs])
        given = dict(zip(names, inputs, strict=True))
        weight = unpack(
            PackedWeight(
                qweight=given["qweight"],
                scales=given["scales"],
                zeros=given.get("zeros"),
                bits=values["bits"],
                group_size=values["group_size"],
                in_features=values["in_features"],
                out_features=values["out_features"],
                paired=bool(values["epilogue"]),
            )
        )
        zeros = weight.zeros.astype(np.float64).repeat(weight.group_size, 1)
        scales = weight.scales.astype(np.float64).repeat(weight.group_size, 1)
        y = given["x"].astype(np.float64) @ ((weight.codes - zeros) * scales).T
        if "bias" in given:
            y += given["bias"]
        if values["epilogue"]:
            gate, up = np.split(y, 2, axis=-1)
            y = gate / (1 + np.exp(-gate)) * up
        return (y.astype(given["x"].dtype),)


class CachedAttention(OpRun):
    op_domain = "awq_edge"

    def _run(self, *inputs, **attributes):  # type: ignore[no-untyped-def]
        values = contract_values(CACHED_ATTENTION, attributes)
        names = [tensor.name for tensor in CACHED_ATTENTION.inputs_of(values)]
        CACHED_ATTENTION.check_shapes(values, [tensor.shape for tensor in inputs])
        given = dict(zip(names, inputs, strict=True))
        if values["merged_qkv"]:
            size = values["head_size"]
            ends = np.cumsum([values["num_heads"] * size, values["num_kv_heads"] * size])
            given["q"], given["k"], given["v"] = np.split(given["qkv"], ends, axis=-1)
        for part in "qk" if values["qk_norm"] else "":
            given[part] = head_normed(given[part], given[f"{part}_norm"], values["norm_eps"])
        settings: dict[str, Any] = {
            name: values[name]
            for name in ("num_heads", "num_kv_heads", "head_size", "rotary_size", "scale")
        }
        settings |= {name: values[name] for name in ("window", "soft_cap") if values[name]}
        order = ("q", "k", "v", "past_length", "cosine", "sine", "past_key", "past_value")
        tensors = [given.get(name) for name in order]
        return reference.CachedAttention._run(self, *tensors, **settings)  # type: ignore[arg-type]


def contract_values(op: Any, attributes: dict[str, Any]) -> Any:
    """The attributes as TensorRT's creator reads them."""
    assert attributes.pop("plugin_version") == "1" and attributes.pop("plugin_namespace") == ""
    return op.read(attributes)


def head_normed(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    heads = x.astype(np.float64).reshape(*x.shape[:-1], -1, len(weight))
    heads /= np.sqrt((heads**2).mean(axis=-1, keepdims=True) + epsilon)
    normed: np.ndarray = (heads * weight).reshape(x.shape).astype(x.dtype)
    return normed


class LoweredSession:
    """Runs a lowered graph call by call, its cache carried along."""

    def __init__(self, graph: DecoderGraph, ir_version: int, attention: str, batch: int = 1):
        model = evaluated_model(graph, ir_version)
        self._outputs = [value.name for value in model.graph.output]
        self._run = _runner(model, self._outputs)
        self._cache = {}
        for value in model.graph.input:
            if value.name.startswith("past."):
                dims = [batch, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                self._cache[value.name] = np.full(dims, UNWRITTEN[attention], dtype)

    def run(self, ids: np.ndarray, past_length: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """ids: int64 [B, S]. past_length: int64 [B]. positions: int64 [B, P]. Returns logits."""
        feeds = {"input_ids": ids, "past_length": past_length, "logits_positions": positions}
        return self.call(feeds)

    def call(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """Logits of one call; feeds: everything but the cache."""
        found = dict(zip(self._outputs, self._run(feeds | self._cache), strict=True))
        self._cache = {name: found[name.replace("past", "present")] for name in self._cache}
        return np.asarray(found["logits"])


def _runner(model: onnx.ModelProto, outputs: list[str]) -> Any:
    if any(node.op_type in OPS and node.domain for node in model.graph.node):
        evaluator = ReferenceEvaluator(model, new_ops=[W4A16Linear, CachedAttention])
        return lambda feeds: evaluator.run(None, feeds)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # Else DequantizeLinear and MatMul become a MatMulNBits of int8 activations.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feeds: session.run(outputs, feeds)
