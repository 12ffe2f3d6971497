"""The kernel interface in NumPy on host addresses, and a device that is the host.

With these the cuda backend runs on a CPU: its program, its pointers, strides and buffers, all but
the kernels themselves. Written from plugins/include/awq_edge_kernels.h; sums are in float32, and
what a kernel writes is rounded to the activation dtype once, as the header says.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from awq_edge.errors import ResourceError
from awq_edge.kernels.interface import (
    COUNTER_BYTES,
    FUNCTIONS,
    AttentionParameters,
    DenseWeight,
    Epilogue,
    Routing,
    Sampler,
    W4A16Weight,
)
from tests.kernels.host_attention import cached_attention
from tests.kernels.host_experts import routed_experts
from tests.kernels.host_memory import (
    Array,
    check_workspace,
    raw,
    read,
    write,
)
from tests.kernels.host_operations import HostOperations, after_epilogue
from tests.kernels.host_sampling import log_softmax, sample_rows

_PAGE = 256  # what the device aligns its memory to
_STREAM = 0x5EED  # what the device hands out, and every launch has to pass on


class HostDevice:
    """See `awq_edge.runtime.backends.cuda.device.Device`. A captured step runs again, as it is."""

    name = "host"
    versions: ClassVar[dict[str, str]] = {"numpy": np.__version__}

    def __init__(self, free: int = 1 << 30) -> None:
        self._free = free
        self._in_scope = False
        self._blocks: dict[int, Array] = {}

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

    def synchronize(self) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            with self.scope():
                work()

        replay()
        return replay

    def zeros(self, size: int) -> int:
        if size > self._free:
            raise ResourceError("the host's memory ran out")
        block = np.zeros(size + _PAGE, np.uint8)
        address: int = -(-block.ctypes.data // _PAGE) * _PAGE
        self._blocks[address] = block
        return address

    def free(self, address: int) -> None:
        del self._blocks[address]

    def close(self) -> None:
        self._blocks.clear()

    def host_zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def upload(self, target: int, source: Array, pitch: int | None = None) -> None:
        assert self._in_scope
        for row, place in self._rows(target, source, pitch):
            place[:] = row

    def download(self, target: Array, source: int, pitch: int | None = None) -> None:
        assert self._in_scope
        for row, place in self._rows(source, target, pitch):
            row[:] = place

    def copy(self, target: int, source: int, size: int) -> None:
        _octets(target, size)[:] = _octets(source, size)

    def memory(self) -> tuple[int, int]:
        return self._free, 1 << 30

    def copy_bandwidth(self) -> float | None:
        return 1e9

    def _rows(self, address: int, array: Array, pitch: int | None) -> Iterator[tuple[Array, Array]]:
        """Rows of an array of the host, with their memory on the device."""
        rows = array.view(np.uint8).reshape(1, -1) if pitch is None else array.view(np.uint8)
        for number, row in enumerate(rows):
            begin = address + number * (pitch or 0)
            yield row, _octets(begin, len(row))


def _octets(address: int, size: int) -> Array:
    """Bytes at an address, writable."""
    memory = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memory, dtype=np.uint8)


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
        cached_attention(a)

    def dense_linear(
        self, weight: DenseWeight, x: int, y: int, m: int, tactic: int, space: int, size: int
    ) -> None:
        check_workspace(space, size)
        n, k, dtype = weight.out_features, weight.in_features, weight.dtype
        values = read(x, (m, k), dtype) @ read(weight.weight, (n, k), dtype).T
        if weight.bias:
            values = values + read(weight.bias, (n,), dtype)
        write(y, values, dtype)

    def experts(
        self,
        gate_up: W4A16Weight,
        down: W4A16Weight,
        routing: Routing,
        logits: int,
        x: int,
        y: int,
        m: int,
        space: int,
        size: int,
    ) -> None:
        check_workspace(space, size)
        routed_experts(gate_up, down, routing, logits, x, y, m, self.dequantized)

    def gather_rows(self, x: int, rows: int, y: int, count: int, size: int, dtype: int) -> None:
        wanted = raw(rows, (count,), np.int64)
        write(y, read(x, (int(wanted.max()) + 1, size), dtype)[wanted], dtype)

    def sample(self, a: Sampler, space: int, size: int) -> None:
        check_workspace(space, size)
        sample_rows(a)

    def count_tokens(self, ids: int, counts: int, count: int, vocab: int) -> None:
        wanted = raw(ids, (count,), np.int64)
        raw(counts, (vocab,), np.uint32)[wanted[(wanted >= 0) & (wanted < vocab)]] |= 1

    def log_probabilities(
        self,
        logits: int,
        ids: int,
        chosen: int | None,
        top_ids: int,
        top_values: int,
        rows: int,
        vocab: int,
        top: int,
        dtype: int,
        space: int,
        size: int,
    ) -> None:
        check_workspace(space, size)
        values = log_softmax(read(logits, (rows, vocab), dtype))
        if chosen is not None:
            wanted = raw(ids, (rows, 1), np.int64)
            raw(chosen, (rows, 1), np.float32)[:] = np.take_along_axis(values, wanted, axis=1)
        if top > 0:
            likeliest = np.argsort(-values, axis=1, kind="stable")[:, :top]
            raw(top_ids, (rows, top), np.int64)[:] = likeliest
            raw(top_values, (rows, top), np.float32)[:] = np.take_along_axis(
                values, likeliest, axis=1
            )

    def advance(self, past_length: int, batch: int, by: int) -> None:
        raw(past_length, (batch,), np.int64)[:] += by
