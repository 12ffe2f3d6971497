"""The device layer in memory: addresses are the host's, streams are lists of work.

Work is done when its stream is waited for, as late as CUDA may: what reads too early finds the old
bytes. Every call is counted, and one of them can be made to fail.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from awq_edge.device.layer import ALIGNMENT, Gpu, HostBytes
from awq_edge.errors import DeviceError, ResourceError

Work = Callable[[], None]


class FakeLayer:
    """Implements `DeviceLayer`.

    fail_at: number of the call that fails, from 1. memory: bytes of the GPU. calls: their names, in
    order; of TensorRT's fake too.
    """

    def __init__(
        self,
        *,
        fail_at: int | None = None,
        memory: int = 1 << 30,
        capability: int = 89,
        integrated: bool = False,
    ) -> None:
        self.gpu = Gpu("Fake GPU", capability, integrated)
        self.versions = {"fake-layer": "1"}
        self.calls: list[str] = []
        self.fail_at = fail_at
        self.closed = False
        self.peak = 0
        self._total = memory
        self._blocks: dict[int, HostBytes] = {}
        self._host: dict[int, HostBytes] = {}
        self._streams: dict[int, list[Work]] = {}
        self._events: dict[int, float] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work]] = {}
        self._handles = iter(range(1, 1_000_000))

    # ---- what tests ask

    def trips(self, name: str) -> bool:
        """Count a call; whether it is the one that fails."""
        self.calls.append(name)
        return len(self.calls) == self.fail_at

    @property
    def failed_call(self) -> str:
        assert self.fail_at is not None
        return self.calls[self.fail_at - 1]

    @property
    def held(self) -> dict[str, int]:
        """What was not given back, by kind."""
        kinds = {
            "device buffers": self._blocks,
            "host buffers": self._host,
            "streams": self._streams,
            "events": self._events,
            "graphs": self._graphs,
            "captures": self._captures,
        }
        held = {name: len(each) for name, each in kinds.items() if each}
        return held if self.closed else {**held, "layer": 1}

    @property
    def graphs(self) -> int:
        return len(self._graphs)

    def in_use(self) -> int:
        return sum(block.nbytes for block in self._blocks.values())

    def view(self, address: int, size: int) -> HostBytes:
        """Bytes on the device; they must lie within one buffer that is not freed."""
        for start, block in self._blocks.items():
            if start <= address and address + size <= start + block.nbytes:
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} are in no buffer of the device")

    def is_capturing(self, stream: int) -> bool:
        return stream in self._captures

    def queue(self, stream: int, work: Work) -> None:
        self._captures_or_stream(stream).append(work)

    # ---- DeviceLayer

    def activate(self) -> None:
        self._count("activate")

    def memory(self) -> tuple[int, int]:
        self._count("memory")
        return self._total - self.in_use(), self._total

    def allocate(self, size: int) -> int:
        self._count("allocate")
        if self.in_use() + size > self._total:
            raise ResourceError(f"the GPU's memory ran out in allocate of {size} bytes")
        raw = np.full(size + ALIGNMENT, 0xAB, dtype=np.uint8)
        offset = -raw.ctypes.data % ALIGNMENT
        block = raw[offset : offset + size]
        self._blocks[block.ctypes.data] = block
        self.peak = max(self.peak, self.in_use())
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        for stream in list(self._streams):
            self._drain(stream)  # as cudaFree does
        del self._blocks[address]
        self._count("free")

    def allocate_host(self, size: int) -> HostBytes:
        self._count("allocate_host")
        array = np.full(size, 0xAB, dtype=np.uint8)
        self._host[array.ctypes.data] = array
        return array

    def free_host(self, array: HostBytes) -> None:
        del self._host[array.ctypes.data]
        self._count("free_host")

    def create_stream(self) -> int:
        self._count("create_stream")
        stream = next(self._handles)
        self._streams[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]
        self._count("destroy_stream")

    def synchronize(self, stream: int) -> None:
        self._count("synchronize")
        assert stream not in self._captures, "a stream that is captured cannot be waited for"
        self._drain(stream)

    def copy_to_device(self, target: int, source: HostBytes, stream: int) -> None:
        self._count("copy_to_device")
        self._require_locked(source)

        def work() -> None:
            self.view(target, source.nbytes)[:] = source

        self.queue(stream, work)

    def copy_to_host(self, target: HostBytes, source: int, stream: int) -> None:
        self._count("copy_to_host")
        self._require_locked(target)

        def work() -> None:
            target[:] = self.view(source, target.nbytes)

        self.queue(stream, work)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._count("copy_on_device")

        def work() -> None:
            self.view(target, size)[:] = self.view(source, size)

        self.queue(stream, work)

    def clear(self, address: int, size: int, stream: int) -> None:
        self._count("clear")

        def work() -> None:
            self.view(address, size)[:] = 0

        self.queue(stream, work)

    def create_event(self) -> int:
        self._count("create_event")
        event = next(self._handles)
        self._events[event] = -1.0
        return event

    def destroy_event(self, event: int) -> None:
        del self._events[event]
        self._count("destroy_event")

    def record_event(self, event: int, stream: int) -> None:
        self._count("record_event")
        self._events[event] = float(len(self.calls))

    def elapsed_seconds(self, begin: int, end: int) -> float:
        """A millisecond for each call between the two."""
        self._count("elapsed_seconds")
        return (self._events[end] - self._events[begin]) / 1e3

    def begin_capture(self, stream: int) -> None:
        self._count("begin_capture")
        assert stream not in self._captures and not self._streams[stream]
        self._captures[stream] = []

    def end_capture(self, stream: int) -> int:
        captured = self._captures.pop(stream)
        self._count("end_capture")
        graph = next(self._handles)
        self._graphs[graph] = captured
        return graph

    def launch_graph(self, graph: int, stream: int) -> None:
        self._count("launch_graph")
        captured = self._graphs[graph]

        def work() -> None:
            for each in captured:
                each()

        self.queue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        del self._graphs[graph]
        self._count("destroy_graph")

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._count("close")

    # ---- inside

    def _count(self, name: str) -> None:
        if self.trips(name):
            raise DeviceError(f"{name} failed, as the test wants it")

    def _captures_or_stream(self, stream: int) -> list[Work]:
        return self._captures[stream] if stream in self._captures else self._streams[stream]

    def _drain(self, stream: int) -> None:
        waiting, self._streams[stream] = self._streams[stream], []
        for work in waiting:
            work()

    def _require_locked(self, array: HostBytes) -> None:
        """Host memory of a copy that does not wait must be page-locked, and alive."""
        start = array.ctypes.data
        assert any(
            address <= start and start + array.nbytes <= address + block.nbytes
            for address, block in self._host.items()
        ), "the host's bytes are not page-locked"
