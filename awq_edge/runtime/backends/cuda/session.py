"""A bundle of runtime `cuda`, loaded: prefill in chunks, decode as one replayed graph.

host  [past_length, token] ─┐                                    ┌─ logits float32 [vocab]
device                      └─ embedding ─ layers ─ lm_head ─────┘
                               └──────── one CUDA graph ────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from awq_edge.artifacts.directories import Bundle
from awq_edge.artifacts.schema import read_manifest
from awq_edge.errors import ArtifactError, ConfigError, ResourceError
from awq_edge.kernels.interface import LAYOUT_VERSION
from awq_edge.process.memory_errors import SMALLER_ACTIVATIONS, memory_errors
from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.linears import Kernels
from awq_edge.runtime.backends.cuda.model import CudaModel
from awq_edge.runtime.backends.cuda.program import CudaProgram
from awq_edge.runtime.backends.cuda.weights import load_weights
from awq_edge.runtime.memory import LOGITS_ROWS, kv_cache_bytes
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
        program.check_sizes(str(path), manifest)
        if program.layout_version != LAYOUT_VERSION:
            raise ArtifactError(
                f"{path} has weights in layout version {program.layout_version}, these kernels "
                f"read {LAYOUT_VERSION}; export the bundle again"
            )
        self._device = device
        needed = program.weight_bytes + kv_cache_bytes(manifest, self._context)
        _require_memory(device, needed, self._context)
        with memory_errors(f"{bundle.path} was loaded"), device.scope():
            self._weights, tensors = load_weights(
                bundle.path / manifest.weights, program, device.torch_device
            )
            model = CudaModel(
                program,
                tensors,
                kernels,
                device,
                context=self._context,
                max_rows=self._prefill_chunk,
            )
            self._host_state = device.host_tensor((4,), torch.int64)
            self._host_ids = device.host_tensor((self._prefill_chunk,), torch.int64)
            self._host_wanted = device.host_tensor((LOGITS_ROWS,), torch.int64)
            self._host_logits = device.host_tensor((LOGITS_ROWS, self._vocab_size), torch.float32)
            self._model: CudaModel | None = model
            self._step = device.capture(model.step)
            self._greedy_step: Callable[[], None] | None = None
            device.synchronize()
        versions = {"torch": str(torch.__version__)}
        if torch.version.cuda is not None:
            versions["cuda"] = torch.version.cuda
        self._info = SessionInfo("cuda", device.name, None, versions)

    @property
    def info(self) -> SessionInfo:
        return self._info

    @property
    def memory(self) -> SessionMemory:
        model = self._model
        if model is None:
            return SessionMemory(kv_cache=0, weights=0, workspace=0)
        return SessionMemory(
            kv_cache=model.cache.nbytes,
            weights=self._weights.nbytes,
            workspace=model.workspace_bytes,
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
        model = self._require_model()
        if self._greedy_step is None:
            with memory_errors("the greedy step was captured"):
                # Capturing runs the step once: at the position that the first one overwrites.
                with self._device.scope():
                    self._set_state(token_id)
                self._greedy_step = self._device.capture(model.greedy_step)
        with self._device.scope():
            history = torch.empty(count, dtype=torch.int64, device=self._device.torch_device)
            self._set_state(token_id)
            for index in range(count):
                self._greedy_step()
                history[index : index + 1].copy_(model.token)
            self._device.synchronize()
            ids: list[int] = history.tolist()
        self._ids += [token_id, *ids[:-1]]
        return ids

    def copy_cache(self) -> CacheCopy:
        """The filled positions of every layer, as bytes. See `Session`."""
        with self._device.scope():
            filled = self._require_model().cache[:, :, :, : len(self._ids)].contiguous()
            return CacheCopy(tuple(self._ids), {"cache": filled.view(torch.uint8).cpu().numpy()})

    def restore_cache(self, copy: CacheCopy) -> None:
        """See `Session`."""
        cache = self._require_model().cache
        with self._device.scope():
            part = torch.from_numpy(copy.parts["cache"]).view(cache.dtype)
            cache[:, :, :, : len(copy.ids)].copy_(part)
            self._device.synchronize()
        self._ids[:] = copy.ids

    def close(self) -> None:
        """Free weights, cache and graph."""
        super().close()
        self._model = None
        for name in ("_step", "_greedy_step", "_weights"):
            self.__dict__.pop(name, None)

    def _decode(self, token_id: int) -> None:
        model = self._require_model()
        with self._device.scope():
            self._set_state(token_id)
            self._step()
            self._host_logits[:1].copy_(model.logits32[:1], non_blocking=True)
            self._device.synchronize()
        self._ids.append(token_id)

    def _run(self, ids: Sequence[int], wanted: list[int], out: Float32 | None = None) -> None:
        """Append ids, at most a chunk, and compute the logits at `wanted` of them.

        out: [len(wanted), vocab], written; None leaves the logits in the host buffer.
        """
        model, count = self._require_model(), len(ids)
        with self._device.scope(), memory_errors("the model ran", SMALLER_ACTIVATIONS):
            self._host_ids[:count] = torch.tensor(ids, dtype=torch.int64)
            model.ids[:count].copy_(self._host_ids[:count], non_blocking=True)
            self._set_state(0)
            model.run(count)
            for begin in range(0, len(wanted), LOGITS_ROWS):
                rows = wanted[begin : begin + LOGITS_ROWS]
                self._host_wanted[: len(rows)] = torch.tensor(rows, dtype=torch.int64)
                model.wanted.copy_(self._host_wanted, non_blocking=True)
                model.row_logits(len(rows))
                self._host_logits[: len(rows)].copy_(model.logits32[: len(rows)], non_blocking=True)
                self._device.synchronize()
                if out is not None:
                    out[begin : begin + len(rows)] = self._host_logits[: len(rows)].numpy()
            self._device.synchronize()
        self._ids.extend(ids)

    def _set_state(self, token_id: int) -> None:
        """Copy past_length and token to the device. The host buffer is free: every call waits."""
        self._host_state[0], self._host_state[2] = len(self._ids), token_id
        self._require_model().state.copy_(self._host_state, non_blocking=True)

    def _row(self, row: int) -> Float32:
        row_logits: Float32 = self._host_logits[row].numpy()
        return row_logits

    def _require_model(self) -> CudaModel:
        assert self._model is not None, "_require refuses a closed session"
        return self._model


def _require_memory(device: Device, needed: int, context: int) -> None:
    free, _ = device.memory()
    if needed > free:
        raise ResourceError(
            f"weights and a KV cache of {context} tokens need {size_text(needed)} of the memory "
            f"of {device.name}, {size_text(free)} are free; choose a smaller --context or model"
        )
