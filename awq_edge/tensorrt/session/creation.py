"""Execution contexts of both TensorRTs: memory from the session, kernels of TensorRT for RTX.

TensorRT for RTX compiles kernels on the device: general ones at once, faster ones for the shapes
that come. A captured graph keeps whichever kernels were there, so that the decode context takes the
faster ones before its first run (EAGER); prefill has many lengths and does not wait (LAZY). What is
compiled goes to a file of the cache folder, for the next start.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import ModuleType
from typing import Any

from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.input_files import read_bytes
from awq_edge.errors import ArtifactError, DeviceError

_LARGEST_CACHE = 1 << 30  # bytes


class ContextFactory:
    """Makes the contexts of one engine."""

    def __init__(self, tensorrt: ModuleType, engine: Any, kernel_cache: Path | None) -> None:
        """Take note of the session's TensorRT.

        kernel_cache: file of compiled kernels, for TensorRT for RTX; it need not exist.
        """
        self._trt: Any = tensorrt
        self._engine = engine
        self._compiles = hasattr(tensorrt, "DynamicShapesKernelSpecializationStrategy")
        self._file = kernel_cache if self._compiles else None
        self._kernels: Any = None
        self._read = b""

    def create(self, *, eager: bool, own_graphs: bool = False) -> Any:
        """A context without device memory of its own.

        eager: wait for kernels of a shape before its first run.
        own_graphs: TensorRT for RTX captures and launches graphs itself.

        Raises DeviceError.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._compiles:
            return self._made(self._engine.create_execution_context(strategy))
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = (
            strategies.EAGER if eager else strategies.LAZY
        )
        graphs = self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if own_graphs else graphs.DISABLED
        if self._kernels is None and self._file is not None:
            self._kernels = config.create_runtime_cache()
            with contextlib.suppress(ArtifactError):
                self._read = read_bytes(self._file, limit=_LARGEST_CACHE, error=ArtifactError)
            if self._read:  # one of another driver or GPU is refused, and written anew
                self._kernels.deserialize(self._read)
        if self._kernels is not None:
            config.set_runtime_cache(self._kernels)
        return self._made(self._engine.create_execution_context(config))

    @property
    def has_own_graphs(self) -> bool:
        """True where this TensorRT can capture graphs itself."""
        return self._compiles

    def activation_bytes(self, profiles: int) -> int:
        """Device memory that a context needs, of the profile that needs most."""
        return max(
            int(self._engine.get_device_memory_size_for_profile_v2(index))
            for index in range(profiles)
        )

    def release(self) -> None:
        """Write the compiled kernels, then give up the engine. Never fails: the file is a cache."""
        if self._kernels is not None and self._file is not None:
            with contextlib.suppress(OSError):
                content = self._kernels.serialize()
                compiled = b"" if content is None else bytes(memoryview(content))
                if compiled not in (b"", self._read):
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    with atomic_file(self._file) as work:
                        work.write_bytes(compiled)
        self._kernels = self._engine = None

    @staticmethod
    def _made(context: Any) -> Any:
        if context is None:
            raise DeviceError(
                "TensorRT made no execution context: mostly the GPU's memory has run out; close "
                "other programs that use it, or choose a smaller --context"
            )
        return context
