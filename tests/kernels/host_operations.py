"""Operations on activations in NumPy, at host addresses: norms, activations, gathered rows.

Written from plugins/include/awq_edge_kernels.h: sums are in float32, what is written is rounded to
the activation dtype once.
"""

from __future__ import annotations

import math

import numpy as np

from awq_edge.kernels.interface import Activation, Epilogue, NormKind, NormParameters
from tests.kernels.host_memory import Array, raw, read, read_rows, write

_erfc = np.vectorize(math.erfc, otypes=[np.float32])


class HostOperations:
    """Functions of the header by their names without awq_edge_, their stream left out."""

    def normalize(self, norm: NormParameters) -> None:
        shape = (norm.rows, norm.size)
        values = read(norm.x, shape, norm.dtype)
        if norm.residual:
            if norm.post_weight:
                values = _normalized(norm, values, norm.post_weight, norm.post_bias)
            before = read(norm.residual, shape, norm.dtype)
            write(norm.residual, before + np.float32(norm.residual_scale) * values, norm.dtype)
            values = read(norm.residual, shape, norm.dtype)
        if norm.y:
            write(norm.y, _normalized(norm, values, norm.weight, norm.bias), norm.dtype)

    def activation(
        self,
        gate: int,
        up: int | None,
        y: int,
        rows: int,
        size: int,
        stride: int,
        activation: int,
        dtype: int,
    ) -> None:
        values = activated(read_rows(gate, rows, stride, size, dtype), Activation(activation))
        if up is not None:
            values = values * read_rows(up, rows, stride, size, dtype)
        write(y, values, dtype)

    def embedding(
        self, ids: int, table: int, y: int, rows: int, size: int, vocab: int, dtype: int
    ) -> None:
        wanted = raw(ids, (rows,), np.int64)
        write(y, read(table, (vocab, size), dtype)[wanted], dtype)


def rms(x: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(eps))


def activated(x: Array, activation: Activation) -> Array:
    """The function of each value. x: float32."""
    with np.errstate(over="ignore"):
        if activation == Activation.SILU:
            return x / (1 + np.exp(-x))
        if activation == Activation.GELU:
            return np.float32(0.5) * x * _erfc(-x / np.float32(math.sqrt(2)))
        if activation == Activation.GELU_TANH:
            inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
            return x / (1 + np.exp(-2 * inner))
    positive: Array = np.maximum(x, 0)
    return positive if activation == Activation.RELU else positive * positive


def after_epilogue(values: Array, epilogue: Epilogue) -> Array:
    """values: float32 [m, n] with their bias, gate before up. [m, n], or [m, n / 2] of a pair."""
    if epilogue.activation is None:
        return values
    if not epilogue.paired:
        return activated(values, epilogue.activation)
    gate, up = np.split(values, 2, axis=1)
    return activated(gate, epilogue.activation) * up


def _normalized(norm: NormParameters, x: Array, weight: int, bias: int | None) -> Array:
    if norm.kind == NormKind.LAYER:
        x = x - x.mean(axis=-1, keepdims=True)
    factors = read(weight, (norm.size,), norm.dtype) + np.float32(norm.weight_offset)
    shifts = read(bias, (norm.size,), norm.dtype) if bias else np.float32(0)
    return rms(x, norm.eps) * factors + shifts
