"""Activations at host addresses, as the kernels' stand-ins in NumPy read and write them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from awq_edge.kernels.interface import COUNTER_BYTES, Dtype

Array = np.ndarray[Any, Any]
# bfloat16 as its bits: NumPy has no such type.
DTYPES: dict[int, Any] = {Dtype.FLOAT16: np.float16, Dtype.BFLOAT16: np.uint16}
_ALIGNMENT = 16


def raw(address: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """The memory at an address, writable."""
    assert address and address % _ALIGNMENT == 0, hex(address or 0)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memory, dtype=np.uint8).view(dtype).reshape(shape)


def read(address: int, shape: tuple[int, ...], dtype: int) -> Array:
    """Activations as float32."""
    return wide(raw(address, shape, DTYPES[dtype]), dtype)


def read_rows(address: int, rows: int, stride: int, size: int, dtype: int) -> Array:
    """Rows that lie `stride` elements apart, as float32 [rows, size]."""
    assert stride % 8 == 0 and stride >= size
    flat = read(address, ((rows - 1) * stride + size,), dtype)
    return np.stack([flat[row * stride : row * stride + size] for row in range(rows)])


def write(address: int, values: Array, dtype: int) -> None:
    """Round to activations."""
    raw(address, values.shape, DTYPES[dtype])[:] = narrow(values, dtype)


def wide(values: Array, dtype: int) -> Array:
    """Activations as they lie in memory, as float32."""
    if dtype == Dtype.FLOAT16:
        return values.astype(np.float32)
    return (values.astype(np.uint32) << 16).view(np.float32)


def narrow(values: Array, dtype: int) -> Array:
    """The inverse of `wide`, to nearest, ties to even."""
    if dtype == Dtype.FLOAT16:
        return values.astype(np.float16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def check_workspace(address: int, size: int) -> None:
    assert size >= COUNTER_BYTES + 16
    assert not raw(address, (COUNTER_BYTES,), np.uint8).any()
