"""The onnxruntime backend: CPU, KV cache in place.

One array per layer holds the keys and one the values of the whole context; each is bound as input
`past.{i}.*` and as output `present.{i}.*`, and GroupQueryAttention writes the new positions into
it. Nothing is copied or allocated between decode steps.

                     ┌──────────────── KV cache, [1, kv_heads, context, head_size] ◄─┐
    input_ids  [1,S] │                                                               │
    past_length  [1] ┴─► graph ─► present.{i}.key/value ────────────────────────────┘
    logits_positions [1,P]    └─► logits [1,P,vocab]
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from awq_edge.artifacts.directories import Bundle
from awq_edge.device.cpu import describe_cpu, measure_read_bandwidth
from awq_edge.device.system_memory import read_system_memory
from awq_edge.errors import ArtifactError, ConfigError, ResourceError, RuntimeUnavailableError
from awq_edge.process.memory_errors import SMALLER_ACTIVATIONS, memory_error, memory_errors
from awq_edge.runtime.session import (
    CacheCopy,
    Float32,
    SessionBase,
    SessionInfo,
    SessionMemory,
    SessionOptions,
    check_positions,
)
from awq_edge.units import release, size_text

_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_LOG_ERRORS_ONLY = 3
# onnxruntime's tiled attention kernel is the slower one for single tokens, and with short prefill
# chunks no faster for many: docs/run-report.md. It is chosen when a session is made.
_ATTENTION_VARIABLE = "ORT_GQA_DISABLE_FLASH_ATTENTION"


# Prompts are computed in groups of rows. onnxruntime's int8 kernels have one path for a single row
# and one for several, 2 or 4 at a time, and round differently in them: a row alone at the end of a
# chunk would make an answer depend on where the chunks of its prompt ended (docs/serve.md).
_ROW_GROUP = 4


class OnnxRuntimeSession(SessionBase):
    """A bundle of runtime `onnxruntime`, loaded."""

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        """Load weights and allocate the KV cache.

        Raises ConfigError for impossible options, RuntimeUnavailableError when this onnxruntime
        cannot execute the graph, ArtifactError when the graph is not what the manifest says,
        ResourceError when memory runs out.
        """
        super().__init__(bundle, options)
        manifest = bundle.manifest
        cpu = describe_cpu()
        self._threads = _check_threads(options.threads, cpu.cores)
        self._info = SessionInfo(
            backend="onnxruntime",
            device=cpu.name,
            threads=self._threads,
            versions={"onnxruntime": ort.__version__},
        )
        self._session: ort.InferenceSession | None = _load(bundle, self._threads)
        dtype = _DTYPES[manifest.activation_dtype]
        positions = _cache_positions(self._session, self._context)
        shape = (1, manifest.num_kv_heads, positions, manifest.head_size)
        self._cache = _allocate_cache(manifest.num_layers, shape, dtype)
        # Inputs and outputs that live as long as the session, bound once for decoding.
        self._past = np.zeros(1, dtype=np.int64)
        self._token = np.zeros((1, 1), dtype=np.int64)
        self._first = np.zeros((1, 1), dtype=np.int64)
        self._last_logits = np.zeros((1, 1, self._vocab_size), dtype=dtype)
        self._decode_binding = self._binding()
        self._bind_step(self._decode_binding, self._token, self._first, self._last_logits)
        self._prefill_binding = self._binding()

    @property
    def info(self) -> SessionInfo:
        return self._info

    @property
    def memory(self) -> SessionMemory:
        return SessionMemory(kv_cache=sum(array.nbytes for array in self._cache.values()))

    def measure_bandwidth(self) -> float | None:
        """Bytes/s that this session's threads read from memory. See `Session`."""
        return measure_read_bandwidth(self._threads)

    def prefill(self, ids: Sequence[int]) -> Float32:
        """Append ids in chunks; logits after the last: float32 [vocab]. See `Session`."""
        self._require(ids)
        for start in range(0, len(ids), self._prefill_chunk):
            chunk = ids[start : start + self._prefill_chunk]
            positions = np.array([[len(chunk) - 1]], dtype=np.int64)
            self._execute(chunk, positions, self._last_logits)
        return _as_float32(self._last_logits[0, 0])

    def decode(self, token_id: int) -> Float32:
        """Append one id; logits after it: float32 [vocab]. See `Session`."""
        self._require((token_id,))
        assert self._session is not None
        self._token[0, 0] = token_id
        self._past[0] = len(self._ids)
        _run(self._session, self._decode_binding)
        self._ids.append(token_id)
        return _as_float32(self._last_logits[0, 0])

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Float32:
        """Append ids; logits at some: float32 [len(positions), vocab]. See `Session`."""
        self._require(ids)
        wanted = check_positions(positions, len(ids))
        logits = np.empty((len(wanted), self._vocab_size), dtype=np.float32)
        for start in range(0, len(ids), self._prefill_chunk):
            chunk = ids[start : start + self._prefill_chunk]
            begin, end = np.searchsorted(wanted, [start, start + len(chunk)])
            if begin == end:  # the graph computes one position at least
                self._execute(chunk, self._first, self._last_logits)
                continue
            here = wanted[None, begin:end] - start
            if self._last_logits.dtype == np.float32:
                self._execute(chunk, here, logits[None, begin:end])
            else:
                part = np.empty((1, end - begin, self._vocab_size), self._last_logits.dtype)
                self._execute(chunk, here, part)
                logits[begin:end] = part[0]
        return logits

    def copy_cache(self) -> CacheCopy:
        """The filled positions of every layer. See `Session`."""
        filled = len(self._ids)
        parts = {name: array[:, :, :filled].copy() for name, array in self._cache.items()}
        return CacheCopy(tuple(self._ids), parts)

    def restore_cache(self, copy: CacheCopy) -> None:
        """See `Session`."""
        for name, part in copy.parts.items():
            self._cache[name][:, :, : len(copy.ids)] = part
        self._ids[:] = copy.ids

    def close(self) -> None:
        """Free weights and KV cache."""
        super().close()
        self._session = None
        self._cache.clear()
        for name in ("_decode_binding", "_prefill_binding"):
            self.__dict__.pop(name, None)

    def _execute(
        self, ids: Sequence[int], positions: npt.NDArray[np.int64], out: npt.NDArray[Any]
    ) -> None:
        """Append ids with one run of the graph.

        out: [1, P, vocab], written.

        Rows that fill the last group come after the ids, where the next run overwrites their keys
        and values, or, at the end of the context, are the ids before, computed again.
        """
        assert self._session is not None
        past, extra = len(self._ids), -len(ids) % _ROW_GROUP
        before: Sequence[int] = ()
        if past + len(ids) + extra > self._context:
            before = self._ids[max(past - extra, 0) :] if extra else ()
            extra = 0
        rows = [*before, *ids, *[ids[-1]] * extra]
        input_ids = np.asarray(rows, dtype=np.int64)[None, :]  # [1, S]
        self._past[0] = past - len(before)
        shifted = positions + len(before)  # bound by address: it has to outlive the run
        self._bind_step(self._prefill_binding, input_ids, shifted, out)
        _run(self._session, self._prefill_binding)
        self._ids.extend(ids)

    def _binding(self) -> ort.IOBinding:
        """A binding with the KV cache as past and present, and past_length."""
        assert self._session is not None
        binding = self._session.io_binding()
        for name, array in self._cache.items():
            _bind(binding.bind_input, f"past.{name}", array)
            _bind(binding.bind_output, f"present.{name}", array)
        _bind(binding.bind_input, "past_length", self._past)
        return binding

    @staticmethod
    def _bind_step(
        binding: ort.IOBinding,
        input_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        logits: npt.NDArray[Any],
    ) -> None:
        """Bind the arrays that change from run to run. They must outlive the run."""
        _bind(binding.bind_input, "input_ids", input_ids)
        _bind(binding.bind_input, "logits_positions", positions)
        _bind(binding.bind_output, "logits", logits)


def open_session(bundle: Bundle, options: SessionOptions) -> OnnxRuntimeSession:
    """Load a bundle; see `OnnxRuntimeSession`."""
    return OnnxRuntimeSession(bundle, options)


def _check_threads(threads: int | None, cores: int) -> int:
    if threads is None:
        return cores
    if threads < 1:
        raise ConfigError(f"--threads {threads}: must be 1 or more")
    return threads


def _require_version(bundle: Bundle, installed: str) -> None:
    """Raise RuntimeUnavailableError when this onnxruntime would compute the graph wrong."""
    oldest = bundle.manifest.min_runtime_version
    if oldest is not None and release(installed) < release(oldest):
        raise RuntimeUnavailableError(
            f"onnxruntime {installed} computes {bundle.path / bundle.manifest.graph} wrong: it "
            f"needs {oldest} or later; update onnxruntime, or, where the model has sliding "
            "windows, export with a --context that does not exceed them"
        )


def _load(bundle: Bundle, threads: int) -> ort.InferenceSession:
    _require_version(bundle, ort.__version__)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    path = bundle.path / bundle.manifest.graph
    try:
        with _attention_kernel():
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        memory = memory_error(error, f"{path} was loaded")
        if memory is not None:
            raise memory from None
        raise RuntimeUnavailableError(
            f"onnxruntime {ort.__version__} cannot load {path} (opset "
            f"{bundle.manifest.opset}): {error}; update onnxruntime or export the bundle again"
        ) from None
    _check_ports(bundle, session)
    return session


def _check_ports(bundle: Bundle, session: ort.InferenceSession) -> None:
    """Raise ArtifactError when the graph's inputs and outputs are not the manifest's."""
    for kind, graph_ports, ports in (
        ("inputs", session.get_inputs(), bundle.manifest.inputs),
        ("outputs", session.get_outputs(), bundle.manifest.outputs),
    ):
        names, wanted = {port.name for port in graph_ports}, {port.name for port in ports}
        if names != wanted:
            raise ArtifactError(
                f"{bundle.path / bundle.manifest.graph}: its {kind} differ from the manifest's in "
                f"{', '.join(sorted(names ^ wanted))}; export the bundle again"
            )
    _check_cache(bundle, session)


def _check_cache(bundle: Bundle, session: ort.InferenceSession) -> None:
    """Raise ArtifactError when the graph's KV cache and logits are not of the manifest's sizes:
    arrays are made of those."""
    manifest = bundle.manifest
    dtype = {"float16": "tensor(float16)", "float32": "tensor(float)"}.get(
        manifest.activation_dtype
    )
    expected: dict[str, tuple[int, ...]] = {"logits": (manifest.vocab_size,)}
    for layer in range(manifest.num_layers):
        for part in ("key", "value"):
            for name in (f"past.{layer}.{part}", f"present.{layer}.{part}"):
                expected[name] = (manifest.num_kv_heads, manifest.head_size)
    ports = {port.name: port for port in [*session.get_inputs(), *session.get_outputs()]}
    cache = {name for name in ports if name.startswith(("past.", "present."))}
    if cache != expected.keys() - {"logits"} or "logits" not in ports:
        raise ArtifactError(
            f"{bundle.path / manifest.graph}: its KV cache has {len(cache)} tensors, "
            f"{4 * manifest.num_layers} are needed for num_layers {manifest.num_layers} of the "
            "manifest; export the bundle again"
        )
    for name, sizes in expected.items():
        shape, stored = ports[name].shape, ports[name].type
        fixed = tuple(shape[-1:]) if name == "logits" else (*shape[1:2], *shape[3:])
        if len(shape) != (3 if name == "logits" else 4) or fixed != sizes or stored != dtype:
            raise ArtifactError(
                f"{bundle.path / manifest.graph}: '{name}' is {stored} {list(shape)}, the "
                f"manifest's sizes {list(sizes)} in {manifest.activation_dtype}; export the bundle "
                "again"
            )


@contextlib.contextmanager
def _attention_kernel() -> Iterator[None]:
    """Choose the attention kernel that decodes faster, unless the user's environment chooses."""
    if _ATTENTION_VARIABLE in os.environ:
        yield
        return
    os.environ[_ATTENTION_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[_ATTENTION_VARIABLE]


def _cache_positions(session: ort.InferenceSession, context: int) -> int:
    """Positions that the graph's KV cache must have: `context`, unless the graph fixes them."""
    shape = next(port.shape for port in session.get_inputs() if port.name.startswith("past."))
    return shape[2] if isinstance(shape[2], int) else context


def _run(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
    """Execute the graph. Raises ResourceError when memory for activations runs out."""
    with memory_errors("the model ran", SMALLER_ACTIVATIONS):
        session.run_with_iobinding(binding)


def _allocate_cache(
    layers: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> dict[str, npt.NDArray[Any]]:
    """Keys and values by name: "0.key". Every page is touched, so that missing memory shows now and
    not in the middle of an answer."""
    cache = {}
    size = 2 * layers * math.prod(shape) * dtype.itemsize
    system = read_system_memory()
    message = (
        f"the KV cache of {shape[2]} tokens needs {size_text(size)}, which this machine "
        "does not have; choose a smaller --context"
    )
    # A system that promises more than it has would end the process, or another one.
    if system is not None and size > system.pageable + system.compressed_swap:
        raise ResourceError(message)
    try:
        for layer in range(layers):
            for part in ("key", "value"):
                cache[f"{layer}.{part}"] = np.full(shape, 0, dtype=dtype)
    except MemoryError:
        raise ResourceError(message) from None
    return cache


def _bind(bind: Any, name: str, array: npt.NDArray[Any]) -> None:
    """Bind a contiguous array's own memory, without a copy."""
    assert array.flags.c_contiguous
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _as_float32(logits: npt.NDArray[Any]) -> Float32:
    """float32 without a copy where it is float32 already."""
    return logits.astype(np.float32, copy=False)
