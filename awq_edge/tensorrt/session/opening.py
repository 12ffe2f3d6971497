"""From a bundle to a session: the GPU, TensorRT, and the engine that fits both."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from awq_edge.artifacts.cache import cache_directory
from awq_edge.artifacts.directories import Bundle
from awq_edge.device.cuda_driver import compute_capability
from awq_edge.device.layer import choose_layer, open_layer
from awq_edge.errors import ArtifactError, RuntimeUnavailableError
from awq_edge.recipe.runtimes import require_runtime
from awq_edge.runtime.backends import ways_out
from awq_edge.tensorrt.module import load_tensorrt

if TYPE_CHECKING:
    from awq_edge.runtime.session import SessionOptions
    from awq_edge.tensorrt.engines import Engine
    from awq_edge.tensorrt.session.session import TensorrtSession

_NOT_ALL = 0.999  # of a build: 1 means that the engine is there


def open_session(bundle: Bundle, options: SessionOptions) -> TensorrtSession:
    """Load a bundle's engine onto the first GPU: of TensorRT, or of TensorRT for RTX.

    An engine that is missing, damaged or of something else is built first. Raises
    RuntimeUnavailableError, with both ways out, where this machine has no GPU, no TensorRT or no
    plugin; otherwise what building and `TensorrtSession` raise.
    """
    from awq_edge.runtime.session import check_context
    from awq_edge.tensorrt.engines import check_contract
    from awq_edge.tensorrt.session.session import TensorrtSession

    runtime = bundle.manifest.runtime
    built = require_runtime(runtime).engine
    assert built is not None, runtime
    check_context(bundle, options.context)
    check_contract(bundle)
    try:
        # Before what is not installed: where there is no GPU, installing it is of no use.
        capability = compute_capability()
        if capability is None:
            raise RuntimeUnavailableError("it has no NVIDIA GPU, or no driver for it")
        tensorrt = load_tensorrt(built.module)
        choose_layer()
    except RuntimeUnavailableError as error:
        raise RuntimeUnavailableError(ways_out(bundle, str(error))) from None
    # Before CUDA is: on a Jetson a build needs the memory that CUDA would take here.
    engine = _engine(bundle, options, runtime, str(tensorrt.__version__), f"SM{capability}")
    source = EngineFile(engine, tensorrt)
    return TensorrtSession(bundle, options, open_layer(), tensorrt, source)


def _engine(bundle: Bundle, options: SessionOptions, runtime: str, version: str, sm: str) -> Engine:
    """The engine for this GPU; built where there is none that fits."""
    from awq_edge.tensorrt.engines import find_engine

    try:
        return find_engine(bundle, runtime, version, sm)
    except ArtifactError:
        from awq_edge.tensorrt.builder import build_engine

    def observe(_index: int, _count: int, part: float, what: str) -> None:
        if options.observer is not None:
            options.observer(min(part, _NOT_ALL), f"building the engine, {what}")

    engine = build_engine(bundle, runtime=runtime, target=sm, observer=observe)
    if options.observer is not None:
        options.observer(1.0, "")
    return engine


class EngineFile:
    """`EngineSource` of an engine that was found."""

    def __init__(self, engine: Engine, tensorrt: ModuleType) -> None:
        from awq_edge.tensorrt.engines import TensorrtLog

        self._engine = engine
        self._tensorrt = tensorrt
        self._log = TensorrtLog(tensorrt)

    @property
    def file(self) -> Path:
        return self._engine.file

    @property
    def kernel_cache(self) -> Path:
        """The folder of this engine's content: kernels of another one would be of no use."""
        digest = self._engine.manifest.files[self._engine.manifest.engine].sha256[:16]
        return cache_directory() / "compiled-kernels" / digest

    def load(self) -> tuple[Any, Any]:
        """Plugins first: TensorRT looks for them while it reads the engine."""
        from awq_edge.tensorrt.engines import deserialize, register_plugins

        register_plugins(self._engine.manifest.plugin, self._tensorrt)
        runtime, engine = deserialize(self._engine, self._tensorrt, self._log)
        return runtime, engine

    def reason(self) -> str:
        return self._log.reason()
