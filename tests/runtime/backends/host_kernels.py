"""The kernel interface in NumPy on host addresses, and a device that is the host.

With these the cuda backend runs on a CPU: its program, its pointers, strides and buffers, all but
the kernels themselves. Written from plugins/include/awq_edge_kernels.h; sums are in float32, and
what a kernel writes is rounded to the activation dtype once, as the header says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from awq_edge.kernels.interface import (
    COUNTER_BYTES,
    FUNCTIONS,
    AttentionParameters,
    Epilogue,
    Sampling,
    W4A16Weight,
)
from tests.kernels.host_memory import (
    DTYPES,
    Array,
    check_workspace,
    narrow,
    raw,
    read,
    read_rows,
    wide,
    write,
)
from tests.kernels.host_operations import HostOperations, after_epilogue, rms

_STREAM = 0x5EED  # what the device hands out, and every launch has to pass on


class HostDevice:
    """See `awq_edge.runtime.backends.cuda.device.Device`. A captured step runs again, as it is."""

    torch_device = torch.device("cpu")
    name = "host"

    def __init__(self, free: int = 1 << 30) -> None:
        self._free = free
        self._in_scope = False

    @property
    def stream(self) -> int:
        assert self._in_scope, "a launch outside of the device's scope"
        return _STREAM

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        before, self._in_scope = self._in_scope, True
        try:
            yield
        finally:
            self._in_scope = before

    def host_tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def synchronize(self) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            with self.scope():
                work()

        replay()
        return replay

    def memory(self) -> tuple[int, int]:
        return self._free, 1 << 30

    def copy_bandwidth(self) -> float | None:
        return 1e9


class HostKernels(HostOperations):
    """See `awq_edge.kernels.kernels.KernelLibrary`. calls: names, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def call(self, name: str, *arguments: Any) -> None:
        assert len(arguments) == len(FUNCTIONS[name]), name
        assert arguments[-1] == _STREAM, name
        self.calls.append(name)
        getattr(self, name.removeprefix("awq_edge_"))(*arguments[:-1])

    def size(self, name: str, *arguments: Any) -> int:
        assert len(arguments) == len(FUNCTIONS[name]) - 1, name
        return COUNTER_BYTES + 16

    def w4a16_linear(
        self, weight: W4A16Weight, x: int, y: int, m: int, tactic: int, space: int, size: int
    ) -> None:
        check_workspace(space, size)
        n, k = weight.out_features, weight.in_features
        w = self.dequantized(weight)
        values = read(x, (m, k), weight.dtype) @ w.T
        if weight.bias:
            values = values + read(weight.bias, (n,), weight.dtype)
        write(y, after_epilogue(values, Epilogue(weight.epilogue)), weight.dtype)

    def cached_attention(self, a: AttentionParameters, space: int, size: int) -> None:
        check_workspace(space, size)
        assert (a.batch, a.kv_dtype) == (1, a.dtype)
        s, h, g, d = a.tokens, a.num_heads, a.num_kv_heads, a.head_size
        past = int(raw(a.past_length, (1,), np.int64)[0])
        q = read_rows(a.q, s, a.q_stride, h * d, a.dtype).reshape(s, h, d)
        k = read_rows(a.k, s, a.k_stride, g * d, a.dtype).reshape(s, g, d)
        v = read_rows(a.v, s, a.v_stride, g * d, a.dtype).reshape(s, g, d)
        if a.q_norm:
            q = rms(q, a.norm_eps) * read(a.q_norm, (d,), a.dtype)
        if a.k_norm:
            k = rms(k, a.norm_eps) * read(a.k_norm, (d,), a.dtype)
        half = a.rotary_size // 2
        tables = [
            raw(p, (a.context, half), np.float32)[past : past + s] for p in (a.cosine, a.sine)
        ]
        q, k = (_rotated(each, *tables) for each in (q, k))
        caches = []
        for cache, new in ((a.key_cache, k), (a.value_cache, v)):
            whole = raw(cache, (g, a.context, d), DTYPES[a.dtype])
            whole[:, past : past + s] = narrow(new.transpose(1, 0, 2), a.dtype)
            caches.append(wide(whole[:, : past + s], a.dtype).repeat(h // g, axis=0))
        keys, values = caches  # [h, past + s, d]
        scores = np.einsum("shd,hpd->hsp", q, keys) * a.scale
        distance = (past + np.arange(s))[:, None] - np.arange(past + s)[None, :]
        hidden = (distance < 0) | ((distance >= a.window) if a.window else False)
        scores = np.where(hidden[None], -np.inf, scores)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        write(a.y, np.einsum("hsp,hpd->shd", shares, values).reshape(s, h * d), a.dtype)

    def gather_rows(self, x: int, rows: int, y: int, count: int, size: int, dtype: int) -> None:
        wanted = raw(rows, (count,), np.int64)
        write(y, read(x, (int(wanted.max()) + 1, size), dtype)[wanted], dtype)

    def sample(
        self,
        logits: int,
        sampling: Sampling,
        step: int,
        ids: int,
        rows: int,
        vocab: int,
        dtype: int,
        space: int,
        size: int,
    ) -> None:
        check_workspace(space, size)
        assert sampling.temperature == 0
        raw(ids, (rows,), np.int64)[:] = read(logits, (rows, vocab), dtype).argmax(axis=1)

    def advance(self, past_length: int, batch: int, by: int) -> None:
        raw(past_length, (batch,), np.int64)[:] += by


def _rotated(x: Array, cosine: Array, sine: Array) -> Array:
    """x: [s, heads, d]; the first 2 * half channels turn."""
    half = cosine.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cosine, sine = cosine[:, None], sine[:, None]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, rest], axis=-1)
