"""A bundle of runtime `cuda`, loaded: prefill in chunks, decode as one replayed graph.

host  [past_length, token] ─┐                                    ┌─ logits float32 [vocab]
device                      └─ embedding ─ layers ─ lm_head ─────┘
                               └──────── one CUDA graph ────────┘
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from awq_edge.artifacts.directories import Bundle
from awq_edge.artifacts.schema import read_manifest
from awq_edge.errors import ArtifactError, AwqEdgeError, ConfigError, ResourceError
from awq_edge.kernels.interface import LAYOUT_VERSION
from awq_edge.process.memory_errors import SMALLER_ACTIVATIONS, memory_errors
from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.executor import Executor
from awq_edge.runtime.backends.cuda.operands import Kernels
from awq_edge.runtime.backends.cuda.program import CONTEXT, ITEM_BYTES, CudaProgram, State
from awq_edge.runtime.backends.cuda.weights import load_weights
from awq_edge.runtime.memory import LOGITS_ROWS
from awq_edge.runtime.session import (
    CacheCopy,
    Float32,
    SessionBase,
    SessionInfo,
    SessionMemory,
    SessionOptions,
    check_positions,
)
from awq_edge.units import size_text


class CudaSession(SessionBase):
    """A bundle on a device. See `Session`."""

    def __init__(
        self, bundle: Bundle, options: SessionOptions, device: Device, kernels: Kernels
    ) -> None:
        """Load weights, allocate cache and buffers, capture the decode step.

        device: closed with the session, also where this fails.

        Raises ConfigError for impossible options, ArtifactError where the program is not one of
        this version, ResourceError when the device's memory runs out.
        """
        super().__init__(bundle, options)
        if options.threads is not None:
            raise ConfigError(
                f"--threads {options.threads}: runtime cuda computes on the GPU; leave it out"
            )
        manifest = bundle.manifest
        path = bundle.path / manifest.graph
        program = read_manifest(CudaProgram, path)
        program.check(str(path), manifest)
        if program.layout_version != LAYOUT_VERSION:
            raise ArtifactError(
                f"{path} has weights in layout version {program.layout_version}, these kernels "
                f"read {LAYOUT_VERSION}; {program.remedy}"
            )
        self._device = device
        self._executor: Executor | None = None
        self._greedy_step: Callable[[], None] | None = None
        try:
            self._load(program, bundle, kernels)
        except BaseException:
            with contextlib.suppress(AwqEdgeError):
                device.close()
            raise
        self._weight_bytes = program.weight_bytes
        self._info = SessionInfo("cuda", device.name, None, device.versions)

    def _load(self, program: CudaProgram, bundle: Bundle, kernels: Kernels) -> None:
        """Weights, state and buffers on the device; the decode step captured."""
        device, manifest = self._device, bundle.manifest
        needed = program.weight_bytes + program.state_bytes(self._context)
        _require_memory(device, needed, self._context)
        with memory_errors(f"{bundle.path} was loaded"), device.scope():
            weights = load_weights(bundle.path / manifest.weights, program, device)
            self._executor = Executor(
                program,
                weights,
                kernels,
                device,
                context=self._context,
                max_rows=self._prefill_chunk,
            )
            self._host_state = device.host_zeros((4,), np.int64)
            self._host_ids = device.host_zeros((self._prefill_chunk,), np.int64)
            self._host_wanted = device.host_zeros((LOGITS_ROWS,), np.int64)
            self._host_logits = device.host_zeros((LOGITS_ROWS, self._vocab_size), np.float32)
            self._step = device.capture(self._executor.step)
            device.synchronize()

    @property
    def info(self) -> SessionInfo:
        return self._info

    @property
    def memory(self) -> SessionMemory:
        executor = self._executor
        if executor is None:
            return SessionMemory(kv_cache=0, weights=0, workspace=0)
        return SessionMemory(
            kv_cache=executor.state_bytes,
            weights=self._weight_bytes,
            workspace=executor.workspace_bytes,
            device=self._device.memory()[1],
        )

    def measure_bandwidth(self) -> float | None:
        """Bytes/s of a copy within the GPU's memory. See `Session`."""
        return self._device.copy_bandwidth()

    def prefill(self, ids: Sequence[int]) -> Float32:
        """Append ids in chunks; logits after the last: float32 [vocab]. See `Session`."""
        self._require(ids)
        chunks = range(0, len(ids), self._prefill_chunk)
        for start in chunks:
            chunk = ids[start : start + self._prefill_chunk]
            if len(chunk) == 1:
                self._decode(chunk[0])
                continue
            wanted = [len(chunk) - 1] if start == chunks[-1] else []
            self._run(chunk, wanted)
        return self._row(0)

    def decode(self, token_id: int) -> Float32:
        """Append one id; logits after it: float32 [vocab]. See `Session`."""
        self._require((token_id,))
        self._decode(token_id)
        return self._row(0)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Float32:
        """Append ids; logits at some: float32 [len(positions), vocab]. See `Session`."""
        self._require(ids)
        wanted = check_positions(positions, len(ids))
        logits = np.empty((len(wanted), self._vocab_size), dtype=np.float32)
        for start in range(0, len(ids), self._prefill_chunk):
            chunk = ids[start : start + self._prefill_chunk]
            begin, end = np.searchsorted(wanted, [start, start + len(chunk)])
            self._run(chunk, (wanted[begin:end] - start).tolist(), logits[begin:end])
        return logits

    def greedy(self, token_id: int, count: int) -> list[int]:
        """Append an id and the `count` - 1 likeliest ids after it; returns the `count` likeliest
        ids, of which the last is not appended.

        The ids are those that `decode` and argmax give, but the host waits once, not at every step.
        """
        if count < 1:
            raise ConfigError(f"count is {count}; it must be 1 or more")
        self._require([token_id] * count)
        executor, device = self._require_executor(), self._device
        if self._greedy_step is None:
            with memory_errors("the greedy step was captured"):
                # Capturing runs the step once: at the position that the first one overwrites.
                with device.scope():
                    self._set_state(token_id)
                self._greedy_step = device.capture(executor.greedy_step)
        ids = np.zeros(count, np.int64)
        history = device.zeros(ids.nbytes)
        with device.scope():
            self._set_state(token_id)
            for index in range(count):
                self._greedy_step()
                device.copy(history + index * ids.itemsize, executor.token, ids.itemsize)
            device.download(ids, history)
            device.synchronize()
        device.free(history)
        found: list[int] = ids.tolist()
        self._ids += [token_id, *found[:-1]]
        return found

    def copy_cache(self) -> CacheCopy:
        """The filled positions of every state, as bytes. See `Session`."""
        executor, filled = self._require_executor(), len(self._ids)
        parts = {}
        with self._device.scope():
            for name, state in executor.program.state.items():
                part = _Positions.of(state, executor.context)
                parts[name] = np.zeros((part.rows, part.row_bytes(filled)), np.uint8)
                self._device.download(parts[name], executor.state[name], part.pitch)
            self._device.synchronize()
        return CacheCopy(tuple(self._ids), parts)

    def restore_cache(self, copy: CacheCopy) -> None:
        """See `Session`."""
        executor = self._require_executor()
        with self._device.scope():
            for name, state in executor.program.state.items():
                pitch = _Positions.of(state, executor.context).pitch
                self._device.upload(executor.state[name], copy.parts[name], pitch)
            self._device.synchronize()
        self._ids[:] = copy.ids

    def close(self) -> None:
        """Free weights, state and graphs."""
        super().close()
        self._executor = None
        for name in ("_step", "_greedy_step"):
            self.__dict__.pop(name, None)
        self._device.close()

    def _decode(self, token_id: int) -> None:
        executor = self._require_executor()
        with self._device.scope():
            self._set_state(token_id)
            self._step()
            self._device.download(self._host_logits[:1], executor.logits)
            self._device.synchronize()
        self._ids.append(token_id)

    def _run(self, ids: Sequence[int], wanted: list[int], out: Float32 | None = None) -> None:
        """Append ids, at most a chunk, and compute the logits at `wanted` of them.

        out: [len(wanted), vocab], written; None leaves the logits in the host buffer.
        """
        executor, device, count = self._require_executor(), self._device, len(ids)
        with device.scope(), memory_errors("the model ran", SMALLER_ACTIVATIONS):
            self._host_ids[:count] = ids
            device.upload(executor.ids, self._host_ids[:count])
            self._set_state(0)
            executor.run(count)
            for begin in range(0, len(wanted), LOGITS_ROWS):
                rows = wanted[begin : begin + LOGITS_ROWS]
                self._host_wanted[: len(rows)] = rows
                device.upload(executor.wanted, self._host_wanted)
                executor.row_logits(len(rows))
                device.download(self._host_logits[: len(rows)], executor.logits)
                device.synchronize()
                if out is not None:
                    out[begin : begin + len(rows)] = self._host_logits[: len(rows)]
            device.synchronize()
        self._ids.extend(ids)

    def _set_state(self, token_id: int) -> None:
        """Copy past_length and token to the device. The host buffer is free: every call waits."""
        self._host_state[0], self._host_state[2] = len(self._ids), token_id
        self._device.upload(self._require_executor().state_input, self._host_state)

    def _row(self, row: int) -> Float32:
        row_logits: Float32 = self._host_logits[row].copy()  # the buffer ends with the session
        return row_logits

    def _require_executor(self) -> Executor:
        assert self._executor is not None, "_require refuses a closed session"
        return self._executor


@dataclass(frozen=True)
class _Positions:
    """A state as rows of positions: all that lies before the axis of positions, and what lies
    behind it, a position. item: bytes of a position. pitch: bytes from row to row."""

    rows: int
    item: int
    pitch: int

    @classmethod
    def of(cls, state: State, context: int) -> _Positions:
        axis, sizes = state.shape.index(CONTEXT), state.sizes(context)
        item = math.prod(sizes[axis + 1 :]) * ITEM_BYTES[state.dtype]
        return cls(math.prod(sizes[:axis]), item, context * item)

    def row_bytes(self, filled: int) -> int:
        return filled * self.item


def _require_memory(device: Device, needed: int, context: int) -> None:
    free, _ = device.memory()
    if needed > free:
        raise ResourceError(
            f"weights and a KV cache of {context} tokens need {size_text(needed)} of the memory "
            f"of {device.name}, {size_text(free)} are free; choose a smaller --context or model"
        )
