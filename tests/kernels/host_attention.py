"""awq_edge_cached_attention in NumPy, at host addresses; written from the header."""

from __future__ import annotations

import numpy as np

from awq_edge.kernels.interface import AttentionParameters, Dtype
from tests.kernels.host_memory import DTYPES, Array, narrow, raw, read, read_rows, wide, write
from tests.kernels.host_operations import rms, sequence_rows


def cached_attention(a: AttentionParameters) -> None:
    """Append every sequence's new tokens to its cache, and attend to what is visible of it."""
    begin = sequence_rows(a.row_begin, a.batch, a.tokens)
    rows, h, g, d = int(begin[-1]), a.num_heads, a.num_kv_heads, a.head_size
    q, k, v = (
        read_rows(address, rows, stride, heads * d, a.dtype).reshape(rows, heads, d)
        for address, stride, heads in (
            (a.q, a.q_stride, h),
            (a.k, a.k_stride, g),
            (a.v, a.v_stride, g),
        )
    )
    past = raw(a.past_length, (a.batch,), np.int64)
    y = np.zeros((rows, h * d), np.float32)
    for sequence in range(a.batch):
        own = slice(int(begin[sequence]), int(begin[sequence + 1]))
        at = int(past[sequence]) + np.arange(own.stop - own.start)
        tables = _tables(a, sequence, own, at)
        queries = _rotated(_normed(a, q[own], a.q_norm), *tables)
        new = (_rotated(_normed(a, k[own], a.k_norm), *tables), v[own])
        keys, values = (
            _appended(a, sequence, at, each, cache, scales)
            for each, cache, scales in zip(
                new,
                (a.key_cache, a.value_cache),
                (a.key_scales, a.value_scales),
                strict=True,
            )
        )
        attended = _softmax_product(a, queries, keys, values, at)
        y[own] = attended.reshape(len(at), h * d)
    write(a.y, y, a.dtype)


def _normed(a: AttentionParameters, x: Array, norm: int | None) -> Array:
    if not norm:
        return x
    weight = read(norm, (a.head_size,), a.dtype) + np.float32(a.norm_offset)
    return rms(x, a.norm_eps) * weight


def _tables(a: AttentionParameters, sequence: int, rows: slice, at: Array) -> tuple[Array, Array]:
    """Cosines and sines [tokens, r / 2] of a sequence's new tokens."""
    half, count = a.rotary_size // 2, max(a.rotary_tables, 1)
    if half == 0:
        return np.zeros((len(at), 0), np.float32), np.zeros((len(at), 0), np.float32)
    table = int(raw(a.rotary_table, (a.batch,), np.int64)[sequence]) if a.rotary_table else 0
    position = np.broadcast_to(at[:, None], (len(at), half))
    if a.positions:
        axes = max(a.position_axes, 1)
        axis = raw(a.pair_axes, (half,), np.int32) if a.pair_axes else np.zeros(half, np.int32)
        position = raw(a.positions, (rows.stop, axes), np.int64)[rows][:, axis]
    position = position.clip(0, a.context - 1)
    cosine, sine = (
        raw(address, (count, a.context, half), np.float32)[table][position, np.arange(half)]
        for address in (a.cosine, a.sine)
    )
    return cosine, sine


def _rotated(x: Array, cosine: Array, sine: Array) -> Array:
    """x: [s, heads, d]; the first 2 * half channels turn."""
    half = cosine.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cosine, sine = cosine[:, None], sine[:, None]
    turned = [first * cosine - second * sine, second * cosine + first * sine, rest]
    return np.concatenate(turned, axis=-1)


def _appended(
    a: AttentionParameters,
    sequence: int,
    at: Array,
    new: Array,
    cache: int,
    scales: int | None,
) -> Array:
    """Write new [s, g, d] to the cache; float32 [g, filled, d], what is in it then."""
    shape = (a.batch, a.num_kv_heads, a.context, a.head_size)
    kept = at < a.context
    filled = min(int(at[-1]) + 1, a.context) if len(at) else 0
    rows = new[kept].transpose(1, 0, 2)  # [g, s, d]
    if a.kv_dtype != Dtype.INT8:
        whole = raw(cache, shape, DTYPES[a.dtype])[sequence]
        whole[:, at[kept]] = narrow(rows, a.dtype)
        return wide(whole[:, :filled], a.dtype)
    assert scales is not None
    codes = raw(cache, shape, np.int8)[sequence]
    factors = raw(scales, shape[:3], np.float32)[sequence]
    largest = np.abs(rows).max(axis=-1)
    inverse = np.divide(127, largest, out=np.zeros_like(largest), where=largest > 0)
    # The product is not rounded on its way to the nearest code.
    scaled = rows.astype(np.float64) * inverse[..., None]
    codes[:, at[kept]] = np.rint(scaled).clip(-127, 127)
    factors[:, at[kept]] = largest / 127
    return codes[:, :filled].astype(np.float32) * factors[:, :filled, None]


def _softmax_product(
    a: AttentionParameters, q: Array, keys: Array, values: Array, at: Array
) -> Array:
    """[s, h, d] from q [s, h, d], keys and values [g, filled, d]."""
    group = a.num_heads // a.num_kv_heads
    keys, values = keys.repeat(group, axis=0), values.repeat(group, axis=0)
    scores = np.einsum("shd,hpd->hsp", q, keys) * np.float32(a.scale)
    if a.soft_cap:
        scores = np.float32(a.soft_cap) * np.tanh(scores / np.float32(a.soft_cap))
    distance = at[:, None] - np.arange(keys.shape[1])[None, :]
    hidden = (distance < 0) | ((distance >= a.window) if a.window else False)
    scores = np.where(hidden[None], np.float32(-np.inf), scores)
    sinks = np.full(a.num_heads, -np.inf, np.float32)
    if a.sinks:
        sinks = read(a.sinks, (a.num_heads,), a.dtype)
    largest = np.maximum(scores.max(axis=-1, initial=-np.inf), sinks[:, None])[..., None]
    shares = np.exp(scores - largest)
    total = shares.sum(axis=-1, keepdims=True) + np.exp(sinks[:, None, None] - largest)
    return np.einsum("hsp,hpd->shd", shares / total, values)
