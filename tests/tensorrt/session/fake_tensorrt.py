"""TensorRT's runtime in NumPy: engines of a tiny decoder, and contexts that insist on the rules.

Nothing is known here of the session. Names and answers are those of TensorRT's Python API; what
TensorRT refuses with False is refused so, and what would be undefined there is an assertion.
"""

from __future__ import annotations

import enum
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.device.fake_device import FakeLayer

Float32 = npt.NDArray[np.float32]
DEVICE_MEMORY = 4096  # of a context, in bytes, times its profile's index plus one


class Enum(enum.Enum):
    """TensorRT's enumerations have members with a name."""


TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = Enum("TensorLocation", "DEVICE HOST")
DataType = Enum("DataType", "FLOAT HALF BF16 INT8 INT32 INT64")
Strategy = Enum("ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
Specialization = Enum("DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE")
GraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")


def fake_module(*, rtx: bool) -> Any:
    """`import tensorrt` or `import tensorrt_rtx`, as far as a session reads it."""
    module = SimpleNamespace(
        __version__="1.7.1.116" if rtx else "10.16.2.10",
        TensorIOMode=TensorIOMode,
        TensorLocation=TensorLocation,
        ExecutionContextAllocationStrategy=Strategy,
    )
    if rtx:
        module.DynamicShapesKernelSpecializationStrategy = Specialization
        module.CudaGraphStrategy = GraphStrategy
    return module


class TinyModel:
    """A decoder whose logits depend on every id before, on their order and on their positions."""

    def __init__(self, vocab: int, layers: int, heads: int, size: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        width = heads * size
        self.vocab, self.layers, self.heads, self.size = vocab, layers, heads, size
        self.embedding = random.standard_normal((vocab, width)).astype(np.float32)
        self.weights = random.standard_normal((layers, 3, width, width)).astype(np.float32)
        self.weights /= np.sqrt(width)
        self.head = random.standard_normal((width, vocab)).astype(np.float32)

    def run(self, ids: Any, past: int, cache: list[tuple[Any, Any]], rows: Any) -> Float32:
        """Append ids to the caches, [heads, positions, size] each; logits at rows: [P, vocab]."""
        count = len(ids)
        places = np.arange(past, past + count)
        x = self.embedding[ids] + np.sin(places)[:, None].astype(np.float32)
        for (keys, values), (wq, wk, wv) in zip(cache, self.weights, strict=True):
            heads = [(x @ w).reshape(count, self.heads, self.size) for w in (wq, wk, wv)]
            q, k, v = (each.transpose(1, 0, 2) for each in heads)
            keys[:, past : past + count], values[:, past : past + count] = k, v
            scores = q @ keys.astype(np.float32).transpose(0, 2, 1)  # over the whole buffer
            scores = np.where(np.arange(keys.shape[1]) <= places[:, None], scores, -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            y = (shares @ values.astype(np.float32)).transpose(1, 0, 2).reshape(count, -1)
            x = np.tanh(x + y)
        return x[rows] @ self.head

    def expected(self, ids: list[int]) -> Float32:
        """Logits after each of ids: [len(ids), vocab], in one pass."""
        shape = (self.heads, len(ids), self.size)
        cache = [
            (np.zeros(shape, np.float16), np.zeros(shape, np.float16)) for _ in range(self.layers)
        ]
        return self.run(np.array(ids), 0, cache, np.arange(len(ids)))


@dataclass(frozen=True)
class Range:
    """A profile: tokens, and rows of logits at most."""

    tokens: tuple[int, int]
    rows: int


class FakeEngine:
    """ICudaEngine. context: positions of the KV cache; a pair: the range that profiles allow."""

    def __init__(
        self,
        layer: FakeLayer,
        model: TinyModel,
        profiles: tuple[Range, ...],
        context: int | tuple[int, int],
        *,
        rtx: bool = False,
        logits: str = "HALF",
        capturable: bool = True,
    ) -> None:
        self.layer, self.model, self.profiles = layer, model, profiles
        self.rtx, self.logits, self.capturable = rtx, logits, capturable
        self.context = context
        self.made: list[str] = []  # how each context was created
        self.runtime: weakref.ref[FakeRuntime] | None = None
        fixed = context if isinstance(context, int) else -1
        shape = (-1, model.heads, fixed, model.size)
        names = [f"{n}.{part}" for n in range(model.layers) for part in ("key", "value")]
        self.inputs = {"input_ids": (-1, -1), "past_length": (-1,), "logits_positions": (-1, -1)}
        self.inputs |= {f"past.{name}": shape for name in names}
        self.outputs = {"logits": (-1, -1, model.vocab)}
        self.outputs |= {f"present.{name}": shape for name in names}
        self.locations: dict[str, Any] = {}
        self.num_optimization_profiles = len(profiles)

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode["INPUT" if name in self.inputs else "OUTPUT"]

    def get_tensor_location(self, name: str) -> Any:
        return self.locations.get(name, TensorLocation["DEVICE"])

    def get_tensor_dtype(self, name: str) -> Any:
        if name == "logits":
            return DataType[self.logits]
        return DataType["HALF" if "." in name else "INT64"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.inputs | self.outputs)[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert name in self.inputs, "outputs have no profile shapes"
        shape, limits = self.inputs[name], self.profiles[profile]
        free = {"input_ids": limits.tokens, "logits_positions": (1, limits.rows)}
        least, most = free.get(name, self.context if isinstance(self.context, tuple) else (0, 0))
        ends = [[end if size < 0 else size for size in shape] for end in (least, most)]
        for end in ends:
            end[0] = 1  # the batch
        return [tuple(ends[0]), tuple(ends[0]), tuple(ends[1])]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return DEVICE_MEMORY * (profile + 1)

    def create_runtime_config(self) -> Any:
        assert self.rtx, "sessions of TensorRT give a strategy"
        return FakeRuntimeConfig(self)

    def create_execution_context(self, how: Any) -> FakeContext | None:
        if self.layer.trips("create_execution_context"):
            return None
        if self.rtx:
            assert how.strategy == Strategy["USER_MANAGED"]
            special = how.dynamic_shapes_kernel_specialization_strategy.name
            self.made.append(f"{special} {how.cuda_graph_strategy.name}")
        else:
            assert how == Strategy["USER_MANAGED"]
            self.made.append(how.name)
        return FakeRtxContext(self) if self.rtx else FakeContext(self)


class FakeRuntimeConfig:
    """IRuntimeConfig of TensorRT for RTX."""

    def __init__(self, engine: FakeEngine) -> None:
        self.strategy: Any = Strategy["STATIC"]
        self.dynamic_shapes_kernel_specialization_strategy: Any = Specialization["LAZY"]
        self.cuda_graph_strategy: Any = GraphStrategy["DISABLED"]

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        cache.content = cache.content or b"compiled"
        return True


class FakeRuntimeCache:
    """IRuntimeCache. works: of all of them, whether TensorRT can write them."""

    works = True

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        self.content = bytes(blob)
        return True

    def serialize(self) -> bytearray | None:
        return bytearray(self.content) if self.works else None


class FakeContext:
    """IExecutionContext."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.layer = engine.layer
        self.profile: int | None = None
        self.memory: tuple[int, int] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.prepared = False  # has run with these shapes
        self.changes = 0  # of shapes: a graph is of one number

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if self.layer.trips("set_optimization_profile_async"):
            return False
        self.profile = profile
        return 0 <= profile < len(self.engine.profiles)

    def set_device_memory(self, address: int, size: int) -> None:
        assert self.profile is not None
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.layer.view(address, size)
        self.memory = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "shapes belong to a profile"
        if self.layer.trips("set_input_shape"):
            return False
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(shape) != len(least):
            return False
        if any(not a <= size <= b for a, size, b in zip(least, shape, most, strict=True)):
            return False
        if self.shapes.get(name) != shape:
            self.shapes[name] = shape
            self.prepared = False
            self.changes += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.layer.trips("set_tensor_address"):
            return False
        assert address % 256 == 0
        self.layer.view(address, 1)
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.layer.trips("execute_async_v3"):
            return False
        assert set(self.shapes) == set(self.engine.inputs)
        assert set(self.addresses) == {*self.engine.inputs, *self.engine.outputs}
        assert self.memory is not None
        self.layer.view(*self.memory)
        if self.layer.is_capturing(stream):
            if not self.prepared or not self.engine.capturable:
                return False
        self.prepared = True
        changes = self.changes

        def work() -> None:
            assert changes == self.changes, "a graph of other shapes was launched"
            self._execute()

        self.layer.queue(stream, work)
        return True

    def _execute(self) -> None:
        model = self.engine.model
        (past,) = self._read("past_length", np.int64)
        ids = self._read("input_ids", np.int64)[0]
        rows = self._read("logits_positions", np.int64)[0]
        positions = self.shapes["past.0.key"][2]
        assert 0 <= past and past + len(ids) <= positions, "beyond the KV cache"
        assert (ids >= 0).all() and (rows < len(ids)).all()
        cache = []
        for layer in range(model.layers):
            pair = []
            for part in ("key", "value"):
                old = self._read(f"past.{layer}.{part}", np.float16)
                new = self._view(f"present.{layer}.{part}", np.float16, old.shape)
                new[:] = old  # the same memory, or a copy
                pair.append(new[0])
            cache.append((pair[0], pair[1]))
        logits = model.run(ids, int(past), cache, rows)
        shape = (1, *logits.shape)
        if self.engine.logits == "BF16":
            bits = np.ascontiguousarray(logits).view(np.uint32) >> 16
            self._view("logits", np.uint16, shape)[0] = bits
        else:
            kind = np.float16 if self.engine.logits == "HALF" else np.float32
            self._view("logits", kind, shape)[0] = logits

    def _read(self, name: str, dtype: Any) -> Any:
        return self._view(name, dtype, self.shapes[name])

    def _view(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.layer.view(self.addresses[name], size).view(dtype).reshape(shape)


class FakeRtxContext(FakeContext):
    """IExecutionContext of TensorRT for RTX."""

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.capturable


class FakeRuntime:
    """Runtime: what an engine was read with."""


class FakeSource:
    """`EngineSource`: what the session is given of an engine's file."""

    def __init__(self, file: Path, engine: FakeEngine, kernel_cache: Path | None = None) -> None:
        self.file = file
        self.kernel_cache = kernel_cache
        self._engine: FakeEngine | None = engine

    def load(self) -> tuple[Any, Any]:
        engine, self._engine = self._engine, None
        assert engine is not None
        runtime = FakeRuntime()
        engine.runtime = weakref.ref(runtime)
        return runtime, engine

    def reason(self) -> str:
        return "TensorRT's own words"
