"""The canonical graph in onnx's reference evaluator, its two operators written out in NumPy.

Nothing here is shared with the lowerings: positions, masks and nibbles are computed one by one.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from awq_edge.exporter.graph import DecoderGraph, to_model


class W4A16Linear(OpRun):
    op_domain = "awq_edge"

    def _run(self, x, codes, scales, zeros=None, bias=None, **attributes):  # type: ignore[no-untyped-def]
        bits, group_size = attributes["bits"], attributes["group_size"]
        codes = codes.astype(np.float64)
        middle = np.full(scales.shape, 2.0 ** (bits - 1))
        zeros = middle if zeros is None else zeros.astype(np.float64)
        weight = (codes - zeros.repeat(group_size, 1)) * scales.astype(np.float64).repeat(
            group_size, 1
        )
        assert weight.shape == (attributes["out_features"], attributes["in_features"])
        y = x.astype(np.float64) @ weight.T
        return ((y if bias is None else y + bias).astype(x.dtype),)


class CachedAttention(OpRun):
    op_domain = "awq_edge"

    def _run(  # type: ignore[no-untyped-def]
        self, q, k, v, past_length, cosine, sine, past_key, past_value, **attributes
    ):
        size, rotary = attributes["head_size"], attributes["rotary_size"]
        heads, kv_heads = attributes["num_heads"], attributes["num_kv_heads"]
        window, cap = attributes.get("window"), attributes.get("soft_cap")
        batch, length, _ = q.shape
        key, value = past_key.astype(np.float64), past_value.astype(np.float64)
        output = np.zeros((batch, length, heads, size))

        def rotated(vector, position):  # type: ignore[no-untyped-def]
            if rotary == 0:
                assert cosine is None and sine is None
                return vector
            half = rotary // 2
            first, second = vector[:half], vector[half:rotary]
            c, s = cosine[position], sine[position]
            turned = [first * c - second * s, second * c + first * s, vector[rotary:]]
            return np.concatenate(turned)

        for b in range(batch):
            for i in range(length):
                position = int(past_length[b]) + i
                for head in range(kv_heads):
                    part = slice(head * size, (head + 1) * size)
                    key[b, head, position] = rotated(k[b, i, part], position)
                    value[b, head, position] = v[b, i, part]
            for i in range(length):
                position = int(past_length[b]) + i
                first = 0 if window is None else max(0, position - window + 1)
                for head in range(heads):
                    kv = head // (heads // kv_heads)
                    query = rotated(q[b, i, head * size : (head + 1) * size], position)
                    scores = key[b, kv, first : position + 1] @ query * attributes["scale"]
                    if cap is not None:
                        scores = cap * np.tanh(scores / cap)
                    shares = np.exp(scores - scores.max())
                    shares /= shares.sum()
                    output[b, i, head] = shares @ value[b, kv, first : position + 1]
        output = output.reshape(batch, length, heads * size)
        return output.astype(q.dtype), key.astype(q.dtype), value.astype(q.dtype)


def evaluated_model(decoder_graph: DecoderGraph, ir_version: int = 11) -> onnx.ModelProto:
    """The model with its weights inside."""
    model = to_model(decoder_graph, ir_version)
    for proto in model.graph.initializer:
        weight = decoder_graph.weights.get(proto.name)
        if weight is None:
            continue
        raw = np.ascontiguousarray(weight.array()).tobytes()
        proto.ClearField("data_location")
        proto.raw_data = raw
    return model


class CanonicalSession:
    """Runs a canonical graph call by call, its cache carried along."""

    def __init__(self, decoder_graph: DecoderGraph, batch: int = 1) -> None:
        model = evaluated_model(decoder_graph)
        self._evaluator = ReferenceEvaluator(model, new_ops=[W4A16Linear, CachedAttention])
        self._outputs = [value.name for value in model.graph.output]
        self._cache = {}
        for value in model.graph.input:
            if value.name.startswith("past."):
                dims = [batch, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                # What was never written must not count: NaN would spread into everything.
                self._cache[value.name] = np.full(dims, np.nan, dtype)

    def run(self, ids: np.ndarray, past_length: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """ids: int64 [B, S]. past_length: int64 [B]. positions: int64 [B, P]. Returns logits."""
        feeds = {"input_ids": ids, "past_length": past_length, "logits_positions": positions}
        return self.call(feeds)

    def call(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """feeds: every input but the cache. Returns logits."""
        found = dict(
            zip(self._outputs, self._evaluator.run(None, feeds | self._cache), strict=True)
        )
        self._cache = {name: found[name.replace("past", "present")] for name in self._cache}
        return np.asarray(found["logits"])
