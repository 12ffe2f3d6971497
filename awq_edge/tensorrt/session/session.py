"""A session on a TensorRT engine: the same for TensorRT and TensorRT for RTX.

                      ┌──────── KV cache, one buffer per tensor ◄──────┐
    host, page-locked │                                                │
    [past, positions, ┴─► engine ─► present.{i}.* ──────────────────────┘
     ids] ── one copy     └───────► logits ── one copy ─► host, float32

Two contexts share one block for activations: the decode profile's, whose single-token step becomes
a CUDA graph, and the prefill profile's, which takes a prompt chunk by chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from awq_edge.artifacts.directories import Bundle
from awq_edge.device.bandwidth import measure_copy_bandwidth
from awq_edge.device.buffers import DeviceBuffer, Owned
from awq_edge.device.layer import DeviceLayer
from awq_edge.device.meter import MemoryMeter
from awq_edge.errors import ConfigError, ResourceError
from awq_edge.runtime.memory import kv_cache_bytes
from awq_edge.runtime.session import (
    Float32,
    SessionBase,
    SessionInfo,
    SessionMemory,
    SessionOptions,
    check_positions,
)
from awq_edge.tensorrt.session.contexts import (
    GRAPHS_VARIABLE,
    ProfileContext,
    Queue,
    StepBuffers,
)
from awq_edge.tensorrt.session.creation import ContextFactory
from awq_edge.tensorrt.session.ports import EnginePorts, Execution, Profile, executions, read_ports
from awq_edge.units import size_text


class EngineSource(Protocol):
    """A checked engine file, which TensorRT makes an engine of.

    reason: TensorRT's words of the last failure.
    kernel_cache: see `ContextFactory`.
    """

    @property
    def file(self) -> Path: ...

    @property
    def kernel_cache(self) -> Path | None: ...

    def load(self) -> tuple[Any, Any]:
        """TensorRT's runtime and engine, plugins registered before. Raises AwqEdgeError."""
        ...

    def reason(self) -> str: ...


@dataclass(frozen=True)
class _Sizes:
    """Bytes on the device."""

    engine: int
    cache: int
    workspace: int


class TensorrtSession(SessionBase):
    """A bundle's engine on a GPU. See `Session`.

    A call that the device refuses closes the session: what the GPU then holds cannot be relied on.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: SessionOptions,
        layer: DeviceLayer,
        tensorrt: ModuleType,
        source: EngineSource,
    ) -> None:
        """Load the engine, allocate KV cache and buffers, capture the decode step.

        The session owns `layer`, also where this raises: ConfigError for impossible options,
        ArtifactError for an engine that is no decoder's, ResourceError when memory runs out,
        DeviceError or RuntimeUnavailableError for what CUDA or TensorRT refuse.
        """
        self._owned = Owned()
        self._layer = layer
        self._owned.add(layer.close)
        with self._released_on_error():
            super().__init__(bundle, options)
            _refuse_threads(options, bundle)
            layer.activate()
            self._meter = MemoryMeter(layer)
            self._load(bundle, tensorrt, source)
            self._layer.synchronize(self._stream)
            self._meter.mark_loaded()
        versions = {bundle.manifest.runtime: str(tensorrt.__version__), **layer.versions}
        self._info = SessionInfo(bundle.manifest.runtime, layer.gpu.name, None, versions)

    @property
    def info(self) -> SessionInfo:
        return self._info

    @property
    def memory(self) -> SessionMemory:
        if self._closed:
            return SessionMemory(kv_cache=0, weights=0, workspace=0)
        measured = self._meter.figures()
        return SessionMemory(
            kv_cache=self._sizes.cache,
            weights=self._sizes.engine,
            workspace=self._sizes.workspace,
            device=measured.total,
            measured=measured,
        )

    def measure_bandwidth(self) -> float | None:
        """Bytes/s of a copy within the GPU's memory. See `Session`."""
        self._layer.activate()
        return measure_copy_bandwidth(self._layer, self._stream)

    def prefill(self, ids: Sequence[int]) -> Float32:
        """Append ids in chunks; logits after the last: float32 [vocab]. See `Session`."""
        self._require(ids)
        logits = np.empty((1, self._vocab_size), dtype=np.float32)
        self._run(ids, [len(ids) - 1], logits)
        last: Float32 = logits[0]
        return last

    def decode(self, token_id: int) -> Float32:
        """Append one id; logits after it: float32 [vocab]. See `Session`."""
        return self.prefill((token_id,))

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Float32:
        """Append ids; logits at some: float32 [len(positions), vocab]. See `Session`."""
        self._require(ids)
        wanted = check_positions(positions, len(ids))
        logits = np.empty((len(wanted), self._vocab_size), dtype=np.float32)
        self._run(ids, wanted.tolist(), logits)
        return logits

    def close(self) -> None:
        """Free engine, cache, buffers and graph; all of them, also where one cannot be freed.

        Raises DeviceError for the first of those.
        """
        super().close()
        self._owned.release()

    def _load(self, bundle: Bundle, tensorrt: ModuleType, source: EngineSource) -> None:
        """Everything on the device, each part given to `_owned` as it is made."""
        layer, manifest, owned = self._layer, bundle.manifest, self._owned
        engine_bytes = source.file.stat().st_size
        needed = engine_bytes + kv_cache_bytes(manifest, self._context)
        _require_memory(self._meter.available(), needed, self._context, layer.gpu.name)
        self._stream = layer.create_stream()
        owned.add(lambda: layer.destroy_stream(self._stream))
        loaded = list(source.load())
        owned.add(loaded.clear)
        factory = ContextFactory(tensorrt, loaded[1], source.kernel_cache)
        owned.add(factory.release)
        ports = read_ports(loaded[1], tensorrt, self._context, str(source.file))
        self._ports = ports
        self._prefill_chunk = min(self._prefill_chunk, ports.max_tokens)
        buffers = StepBuffers(layer, ports, self._vocab_size, self._prefill_chunk, owned)
        self._buffers = buffers
        cache = {each.past: DeviceBuffer(layer, each.size, owned) for each in ports.cache}
        for buffer in cache.values():  # NaN in what was never written would spoil masked sums
            layer.clear(buffer.address, buffer.size, self._stream)
        activations = DeviceBuffer(layer, factory.activation_bytes(len(ports.profiles)), owned)
        self._queue = Queue(layer, self._stream, buffers, activations, source.reason)
        self._sizes = _Sizes(
            engine=engine_bytes,
            cache=sum(buffer.size for buffer in cache.values()),
            workspace=activations.size + buffers.inputs.size + buffers.logits.size,
        )
        self._make_contexts(ports, factory, {name: b.address for name, b in cache.items()})

    def _make_contexts(
        self, ports: EnginePorts, factory: ContextFactory, cache: dict[str, int]
    ) -> None:
        """One context for each profile; the decode step's is run and captured."""
        self._contexts: dict[int, ProfileContext] = {}
        self._owned.add(lambda: _release_contexts(self._contexts))
        decoding = ports.profile_for(1)
        assert decoding is not None, "read_ports has refused such an engine"
        graphs = os.environ.get(GRAPHS_VARIABLE, "1") != "0"

        def create(profile: Profile, graphs: bool, own_graphs: bool = False) -> ProfileContext:
            made = factory.create(eager=profile is decoding, own_graphs=own_graphs)
            return ProfileContext(made, profile, ports, cache, self._queue, graphs=graphs)

        for profile in ports.profiles:
            context = create(profile, graphs and profile is decoding)
            self._contexts[profile.index] = context
            if profile is decoding and graphs:
                context.shape(1, 1)
                if not context.is_capturable():
                    # TensorRT for RTX knows better what of it a graph can hold.
                    del self._contexts[profile.index]
                    context.release()
                    self._contexts[profile.index] = create(profile, False, factory.has_own_graphs)
        # The first run prepares kernels, the second is captured: better now than in an answer.
        # Both write to position 0, which the first prompt overwrites.
        for _ in range(2):
            self._fill([0], (0,))
            self._contexts[decoding.index].run(1, 1, capture=True)
            self._layer.synchronize(self._stream)

    def _run(self, ids: Sequence[int], wanted: Sequence[int], out: Float32) -> None:
        """Append ids and write the logits at `wanted` of them to out: [len(wanted), vocab]."""
        with self._released_on_error():
            self._layer.activate()
            done = 0
            for execution in executions(self._ports, self._prefill_chunk, len(ids), wanted):
                rows = self._execute(
                    ids[execution.start : execution.start + execution.tokens], execution
                )
                out[done : done + len(rows)] = rows
                done += len(rows)
            if len(ids) > 1:  # a question to the driver, which a decode step has no time for
                self._meter.sample()

    def _execute(self, ids: Sequence[int], execution: Execution) -> Float32:
        """Append ids with one run of the engine; logits: float32 [len(execution.rows), vocab]."""
        rows = execution.rows or (0,)  # the graph computes one at least
        self._fill(ids, rows)
        self._contexts[execution.profile.index].run(
            len(ids), len(rows), capture=len(ids) == 1, fetch=bool(execution.rows)
        )
        self._layer.synchronize(self._stream)
        self._ids.extend(ids)
        count = len(execution.rows)
        raw = self._buffers.logits_bytes(count)
        return _as_float32(raw, self._ports.logits_dtype).reshape(count, self._vocab_size)

    def _fill(self, ids: Sequence[int], rows: Sequence[int]) -> None:
        """Write the inputs of a run to the host's side; the run before has been waited for."""
        self._buffers.past_length[0] = len(self._ids)
        self._buffers.positions[: len(rows)] = rows
        self._buffers.ids[: len(ids)] = ids

    @contextmanager
    def _released_on_error(self) -> Iterator[None]:
        """Give everything back where something fails, and raise that."""
        try:
            yield
        except BaseException:
            self._closed = True
            self._owned.release_quietly()
            raise


def _release_contexts(contexts: dict[int, ProfileContext]) -> None:
    """All of them, also behind one that fails."""
    owned = Owned()
    for context in contexts.values():
        owned.add(context.release)
    contexts.clear()
    owned.release()


def _refuse_threads(options: SessionOptions, bundle: Bundle) -> None:
    if options.threads is not None:
        raise ConfigError(
            f"--threads {options.threads}: runtime {bundle.manifest.runtime} computes on the GPU; "
            "leave it out"
        )


def _require_memory(available: int, needed: int, context: int, gpu: str) -> None:
    if needed > available:
        raise ResourceError(
            f"the engine and a KV cache of {context} tokens need {size_text(needed)} of the "
            f"memory of {gpu}, {size_text(available)} are available; close other programs, or "
            "choose a smaller --context or model"
        )


def _as_float32(raw: Any, dtype: str) -> Float32:
    """The numbers of some bytes: TensorRT's HALF, BF16 or FLOAT; a copy."""
    numbers: Float32
    if dtype == "BF16":
        numbers = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        kind = np.float16 if dtype == "HALF" else np.float32
        numbers = raw.view(kind).astype(np.float32)
    return numbers
