"""One execution context: an engine's profile with its buffers, run directly or as a CUDA graph.

set shapes ─► first run of these shapes: queued call by call
              later runs: captured once, then one launch each
other shapes ─► the graph is of no use any more and destroyed
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from awq_edge.device.buffers import DeviceBuffer, Owned, align, host_buffer
from awq_edge.device.layer import DeviceLayer, HostBytes
from awq_edge.errors import AwqEdgeError, DeviceError
from awq_edge.tensorrt.session.ports import EnginePorts, Profile

# Turns graphs off, for driver trouble and for profilers that want to see single kernels.
GRAPHS_VARIABLE = "AWQ_EDGE_CUDA_GRAPHS"
_INT64 = 8


class StepBuffers:
    """Buffers of a run on host and device: inputs in one block, logits in another.

    past_length, logits_positions and input_ids lie behind one another, so that one copy brings all
    of them, each on an address as TensorRT wants it.
    """

    def __init__(
        self, layer: DeviceLayer, ports: EnginePorts, vocab_size: int, chunk: int, owned: Owned
    ) -> None:
        """Allocate for executions of up to `chunk` tokens. Raises ResourceError."""
        self._positions_at = align(_INT64)
        self._ids_at = self._positions_at + align(ports.max_rows * _INT64)
        size = self._ids_at + chunk * _INT64
        self.row_bytes = vocab_size * ports.logits_item_bytes
        self.inputs = DeviceBuffer(layer, size, owned)
        self.logits = DeviceBuffer(layer, ports.max_rows * self.row_bytes, owned)
        self.host_inputs = host_buffer(layer, size, owned)
        self.host_logits = host_buffer(layer, ports.max_rows * self.row_bytes, owned)
        self.past_length = self._view(0, 1)
        self.positions = self._view(self._positions_at, ports.max_rows)
        self.ids = self._view(self._ids_at, chunk)

    def addresses(self) -> dict[str, int]:
        """The addresses of the engine's inputs and of its logits."""
        start = self.inputs.address
        return {
            "past_length": start,
            "logits_positions": start + self._positions_at,
            "input_ids": start + self._ids_at,
            "logits": self.logits.address,
        }

    def input_bytes(self, tokens: int) -> HostBytes:
        """The bytes that a run of so many tokens reads."""
        return self.host_inputs[: self._ids_at + tokens * _INT64]

    def logits_bytes(self, rows: int) -> HostBytes:
        return self.host_logits[: rows * self.row_bytes]

    def _view(self, offset: int, count: int) -> Any:
        return self.host_inputs[offset : offset + count * _INT64].view("int64")


@dataclass(frozen=True)
class Queue:
    """The stream of a session, and the state that its contexts share.

    activations: device memory; only one context runs at a time.
    reason: TensorRT's last words of a failure.
    """

    layer: DeviceLayer
    stream: int
    buffers: StepBuffers
    activations: DeviceBuffer
    reason: Callable[[], str]


class ProfileContext:
    """A TensorRT execution context in one of the engine's profiles."""

    def __init__(
        self,
        context: Any,
        profile: Profile,
        ports: EnginePorts,
        cache: dict[str, int],
        queue: Queue,
        *,
        graphs: bool,
    ) -> None:
        """Set a context up for one profile.

        cache: name of a past tensor -> address.
        graphs: runs may be captured.

        Raises DeviceError where TensorRT refuses profile, shape or address.
        """
        self.profile = profile
        self._context = context
        self._ports = ports
        self._queue = queue
        self._graphs = graphs
        self._shape: tuple[int, int] | None = None
        self._has_run = False  # with this shape: TensorRT prepares kernels in the first run
        self._graph: int | None = None
        self._checked(
            "set_optimization_profile_async",
            context.set_optimization_profile_async(profile.index, queue.stream),
        )
        context.set_device_memory(queue.activations.address, queue.activations.size)
        queue.layer.synchronize(queue.stream)  # it may copy, and runs must not overtake it
        for tensor in ports.cache:
            self._set_shape(tensor.past, tensor.shape)
            for name in (tensor.past, tensor.present):  # one memory: appended in place
                self._set_address(name, cache[tensor.past])
        self._set_shape("past_length", (1,))
        for name, address in queue.buffers.addresses().items():
            self._set_address(name, address)

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def shape(self, tokens: int, rows: int) -> None:
        """Set the shapes of the next run; drops the graph of other ones."""
        if self._shape == (tokens, rows):
            return
        self.drop_graph()
        self._shape, self._has_run = None, False
        self._set_shape("input_ids", (1, tokens))
        self._set_shape("logits_positions", (1, rows))
        self._shape = (tokens, rows)

    def is_capturable(self) -> bool:
        """TensorRT for RTX's word on the shapes that are set; of others, yes."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self._queue.stream))

    def run(self, tokens: int, rows: int, *, capture: bool, fetch: bool = True) -> None:
        """Queue one execution of the input buffers.

        capture: this shape will come again: from its second run on it is one launch of a graph.
        fetch: copy the logits to the host.
        """
        self.shape(tokens, rows)
        if capture and self._graphs and self._has_run:
            if self._graph is None:
                self._graph = self._capture(tokens, rows)
            self._queue.layer.launch_graph(self._graph, self._queue.stream)
            return
        self._enqueue(tokens, rows, fetch)
        self._has_run = True

    def drop_graph(self) -> None:
        """Destroy the graph, where there is one."""
        if self._graph is not None:
            graph, self._graph = self._graph, None
            self._queue.layer.destroy_graph(graph)

    def release(self) -> None:
        """Give up graph and context."""
        try:
            self.drop_graph()
        finally:
            self._context = None

    def _capture(self, tokens: int, rows: int) -> int:
        layer, stream = self._queue.layer, self._queue.stream
        layer.begin_capture(stream)
        try:
            self._enqueue(tokens, rows, True)
        except BaseException:
            # The stream must not stay in capture mode: nothing could be released on it.
            with contextlib.suppress(AwqEdgeError):
                layer.destroy_graph(layer.end_capture(stream))
            raise
        return layer.end_capture(stream)

    def _enqueue(self, tokens: int, rows: int, fetch: bool) -> None:
        layer, stream, buffers = self._queue.layer, self._queue.stream, self._queue.buffers
        layer.copy_to_device(buffers.inputs.address, buffers.input_bytes(tokens), stream)
        self._checked("execute_async_v3", self._context.execute_async_v3(stream))
        if fetch:
            layer.copy_to_host(buffers.logits_bytes(rows), buffers.logits.address, stream)

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        done = self._context.set_input_shape(name, shape)
        self._checked(f"set_input_shape({name}, {list(shape)})", done)

    def _set_address(self, name: str, address: int) -> None:
        done = self._context.set_tensor_address(name, address)
        self._checked(f"set_tensor_address({name})", done)

    def _checked(self, what: str, done: bool) -> None:
        if not done:
            raise DeviceError(
                f"TensorRT refused {what} in profile {self.profile.index}: {self._queue.reason()}; "
                f"where it fails with CUDA graphs only, {GRAPHS_VARIABLE}=0 turns them off"
            )
