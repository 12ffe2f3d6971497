"""awq_edge_experts in NumPy, at host addresses; written from the header."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from awq_edge.kernels.interface import Epilogue, Routing, W4A16Weight
from tests.kernels.host_memory import Array, narrow, read, wide, write
from tests.kernels.host_operations import after_epilogue


def routed_experts(
    gate_up: W4A16Weight,
    down: W4A16Weight,
    routing: Routing,
    logits: int,
    x: int,
    y: int,
    m: int,
    dequantized: Callable[[W4A16Weight], Array],
) -> None:
    """dequantized: float32 [n, k] of one packed weight."""
    dtype = down.dtype
    scores = read(logits, (m, routing.num_experts), dtype)
    chosen, shares = choice(scores, routing.top_k, normalize=bool(routing.normalize))
    rows = read(x, (m, gate_up.in_features), dtype)
    result = np.zeros((m, down.out_features), np.float32)
    for slot in range(routing.top_k):
        for expert in np.unique(chosen[:, slot]):
            sent = chosen[:, slot] == expert
            hidden = _linear(_of_expert(gate_up, int(expert)), rows[sent], dequantized)
            output = _linear(_of_expert(down, int(expert)), hidden, dequantized)
            result[sent] += shares[sent, slot, None] * output
    write(y, result, dtype)


def choice(logits: Array, top_k: int, *, normalize: bool) -> tuple[Array, Array]:
    """Experts and shares [m, top_k] of logits float32 [m, experts]; of equal ones the first."""
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = np.take_along_axis(weights, chosen, axis=1)
    total = (shares if normalize else weights).sum(axis=1, keepdims=True)
    return chosen, shares / total


def _linear(weight: W4A16Weight, x: Array, dequantized: Callable[[W4A16Weight], Array]) -> Array:
    values = x @ dequantized(weight).T
    if weight.bias:
        values = values + read(weight.bias, (weight.out_features,), weight.dtype)
    values = after_epilogue(values, Epilogue(weight.epilogue))
    return wide(narrow(values, weight.dtype), weight.dtype)


def _of_expert(weight: W4A16Weight, expert: int) -> W4A16Weight:
    """One of the weights that lie behind each other."""
    paired = Epilogue(weight.epilogue).paired
    n, k, bits = weight.out_features, weight.in_features, weight.bits
    tiles = -(-(n // 2) // 8) if paired else -(-n // 16)
    blocks = -(-k // 128)
    groups = tiles * blocks * 128 // weight.group_size
    own = W4A16Weight.from_buffer_copy(weight)
    own.qweight += expert * tiles * blocks * 64 * bits * 4
    own.scales += expert * groups * 32
    if weight.zeros:
        own.zeros += expert * groups * (16 if bits == 8 else 8)
    if weight.bias:
        own.bias += expert * n * 2
    return own
