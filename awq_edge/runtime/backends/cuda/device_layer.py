"""The device on the device layer (cuda-python or PyCUDA): no torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import numpy as np

from awq_edge.device.bandwidth import measure_copy_bandwidth
from awq_edge.device.buffers import Owned, align, host_buffer
from awq_edge.device.layer import DeviceLayer, HostBytes
from awq_edge.errors import AwqEdgeError
from awq_edge.runtime.backends.cuda.device import HostArray

# Of host memory that is not page-locked, so much at a time goes through memory that is.
_STAGING_BYTES = 8 << 20


class LayerDevice:
    """One GPU with a stream of its own; see `awq_edge.runtime.backends.cuda.device.Device`."""

    def __init__(self, layer: DeviceLayer) -> None:
        """layer: closed with the device, also where this fails."""
        self._layer = layer
        self._memory: list[int] = []
        self._pinned: list[HostBytes] = []
        self._staging: HostBytes | None = None
        self._owned = Owned()
        self._owned.add(layer.close)
        try:
            layer.activate()
            self._stream = layer.create_stream()
        except BaseException:
            self._owned.release_quietly()
            raise
        self._owned.add(lambda: layer.destroy_stream(self._stream))
        self._owned.add(self._free_all)

    @property
    def name(self) -> str:
        return self._layer.gpu.name

    @property
    def versions(self) -> dict[str, str]:
        return self._layer.versions

    @property
    def stream(self) -> int:
        return self._stream

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        self._layer.activate()
        yield

    def synchronize(self) -> None:
        self._layer.synchronize(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        layer, stream = self._layer, self._stream
        with self.scope():
            work()  # libraries allocate their workspaces at the first call, which a capture refuses
            self.synchronize()
            layer.begin_capture(stream)
            try:
                work()
            except BaseException:
                # The stream must not stay in capture mode: nothing could be released on it.
                with contextlib.suppress(AwqEdgeError):
                    layer.destroy_graph(layer.end_capture(stream))
                raise
            graph = layer.end_capture(stream)
        self._owned.add(lambda: layer.destroy_graph(graph))
        return lambda: layer.launch_graph(graph, stream)

    def zeros(self, size: int) -> int:
        self._layer.activate()
        address = self._layer.allocate(align(size))
        self._memory.append(address)
        self._layer.clear(address, align(size), self._stream)
        return address

    def free(self, address: int) -> None:
        self._memory.remove(address)
        self._layer.free(address)

    def close(self) -> None:
        """Release memory, graphs, the stream and the layer."""
        with contextlib.suppress(AwqEdgeError):
            self._layer.activate()
        self._owned.release()

    def host_zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> HostArray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pinned = host_buffer(self._layer, size, self._owned)
        self._pinned.append(pinned)
        array: HostArray = pinned[:size].view(dtype).reshape(shape)
        return array

    def upload(self, target: int, source: HostArray, pitch: int | None = None) -> None:
        for octets, offset in _rows(source, pitch):
            if self._is_pinned(octets):
                self._layer.copy_to_device(target + offset, octets, self._stream)
                continue
            for begin, part in self._staged(octets):
                np.copyto(part, octets[begin : begin + len(part)])
                self._layer.copy_to_device(target + offset + begin, part, self._stream)
                self.synchronize()  # before the next part is written over this one

    def download(self, target: HostArray, source: int, pitch: int | None = None) -> None:
        for octets, offset in _rows(target, pitch):
            if self._is_pinned(octets):
                self._layer.copy_to_host(octets, source + offset, self._stream)
                continue
            for begin, part in self._staged(octets):
                self._layer.copy_to_host(part, source + offset + begin, self._stream)
                self.synchronize()
                octets[begin : begin + len(part)] = part

    def copy(self, target: int, source: int, size: int) -> None:
        self._layer.copy_on_device(target, source, size, self._stream)

    def memory(self) -> tuple[int, int]:
        self._layer.activate()
        return self._layer.memory()

    def copy_bandwidth(self) -> float | None:
        self._layer.activate()
        return measure_copy_bandwidth(self._layer, self._stream)

    def _is_pinned(self, octets: HostBytes) -> bool:
        return any(np.may_share_memory(octets, pinned) for pinned in self._pinned)

    def _staged(self, octets: HostBytes) -> Iterator[tuple[int, HostBytes]]:
        """The parts of an array that go through page-locked memory one after the other: where each
        begins, and that memory."""
        if self._staging is None:
            self._staging = host_buffer(self._layer, _STAGING_BYTES, self._owned)
        for begin in range(0, len(octets), _STAGING_BYTES):
            yield begin, self._staging[: min(_STAGING_BYTES, len(octets) - begin)]

    def _free_all(self) -> None:
        memory = Owned()
        for address in self._memory:
            memory.add(functools.partial(self._layer.free, address))
        self._memory.clear()
        memory.release()


def _rows(array: HostArray, pitch: int | None) -> Iterator[tuple[HostBytes, int]]:
    """Contiguous bytes of an array, and where they lie on the device."""
    octets: HostBytes = array.view(np.uint8)
    if pitch is None:
        yield octets.reshape(-1), 0
        return
    for number, row in enumerate(octets):
        if len(row):
            yield row, number * pitch
