"""Operations on activations in NumPy, at host addresses: norms, activations, gathered rows.

Written from plugins/include/awq_edge_kernels.h: sums are in float32, what is written is rounded to
the activation dtype once.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from awq_edge.kernels.interface import (
    Activation,
    Dtype,
    Epilogue,
    NormKind,
    NormParameters,
    W4A16Weight,
)
from awq_edge.kernels.packing import PackedWeight, unpack
from awq_edge.model.w4a16 import dequantize
from tests.kernels.host_memory import Array, raw, read, read_rows, write

_erfc = np.vectorize(math.erfc, otypes=[np.float32])


class HostOperations:
    """Functions of the header by their names without awq_edge_, their stream left out."""

    def __init__(self) -> None:
        self._weights: dict[tuple[int, bool], Array] = {}

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
        self,
        ids: int,
        table: int,
        y: int,
        rows: int,
        size: int,
        vocab: int,
        scale: float,
        dtype: int,
    ) -> None:
        wanted = _within(raw(ids, (rows,), np.int64), vocab)
        write(y, read(table, (vocab, size), dtype)[wanted] * np.float32(scale), dtype)

    def add_positions(
        self,
        table: int,
        past_length: int,
        row_begin: int | None,
        y: int,
        batch: int,
        tokens: int,
        size: int,
        positions: int,
        dtype: int,
    ) -> None:
        learned = read(table, (positions, size), dtype)
        past = raw(past_length, (batch,), np.int64)
        begin = sequence_rows(row_begin, batch, tokens)
        values = read(y, (int(begin[-1]), size), dtype).copy()
        for sequence, (first, end) in enumerate(itertools.pairwise(begin)):
            position = past[sequence] + np.arange(end - first)
            values[first:end] += learned[position.clip(0, positions - 1)]
        write(y, values, dtype)

    def logits(
        self,
        x: int,
        y: int,
        rows: int,
        size: int,
        scale: float,
        soft_cap: float,
        dtype: int,
        y_dtype: int,
    ) -> None:
        values = read(x, (rows, size), dtype) * np.float32(scale)
        if soft_cap:
            values = np.float32(soft_cap) * np.tanh(values / np.float32(soft_cap))
        if y_dtype == Dtype.FLOAT32:
            raw(y, (rows, size), np.float32)[:] = values
        else:
            write(y, values, dtype)

    def w4a16_embedding(
        self, table: W4A16Weight, ids: int, y: int, rows: int, scale: float
    ) -> None:
        wanted = _within(raw(ids, (rows,), np.int64), table.out_features)
        write(y, self.dequantized(table)[wanted] * np.float32(scale), table.dtype)

    def dequantized(self, weight: W4A16Weight) -> Array:
        """float32 [n, k], gate above up; unpacked once a packing."""
        paired = Epilogue(weight.epilogue).paired
        key = (weight.qweight, paired)
        if key not in self._weights:
            n, k, bits = weight.out_features, weight.in_features, weight.bits
            tiles = -(-(n // 2) // 8) if paired else -(-n // 16)
            blocks = -(-k // 128)
            groups = blocks * 128 // weight.group_size
            zeros = (tiles, groups, 4 if bits == 8 else 2)
            packed = PackedWeight(
                qweight=raw(weight.qweight, (tiles, blocks, 64 * bits), np.int32),
                scales=raw(weight.scales, (tiles, groups, 8, 2), np.float16),
                zeros=raw(weight.zeros, zeros, np.int32) if weight.zeros else None,
                bits=bits,
                group_size=weight.group_size,
                in_features=k,
                out_features=n,
                paired=paired,
            )
            self._weights[key] = dequantize(unpack(packed))
        return self._weights[key]


def sequence_rows(row_begin: int | None, batch: int, tokens: int) -> Array:
    """int64 [batch + 1]: the first row of each sequence, and the end of the last."""
    if row_begin is None:
        return np.arange(batch + 1) * tokens
    return raw(row_begin, (batch + 1,), np.int64)


def _within(indices: Array, count: int) -> Array:
    """Those outside of 0..count-1 read row 0."""
    return np.where((indices < 0) | (indices >= count), 0, indices)


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
