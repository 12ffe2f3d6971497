"""Attention over a KV cache written out in NumPy for onnx's reference evaluator.

Nothing here is shared with the exporter: positions and masks are computed one by one.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from awq_edge.exporter.graph import DecoderGraph, to_model


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
