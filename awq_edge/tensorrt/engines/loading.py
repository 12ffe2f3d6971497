"""From an engine's file to TensorRT's object, without a copy of it on the way."""

from __future__ import annotations

import mmap
from types import ModuleType
from typing import Any

from awq_edge.errors import RuntimeUnavailableError
from awq_edge.tensorrt.engines.lookup import Engine

_KEPT = 50


class TensorrtLog:
    """TensorRT's messages: `logger` is for its classes, `errors` holds the messages of failures.

    TensorRT answers a failure with None and tells the reason to the logger alone.
    """

    def __init__(self, tensorrt: ModuleType) -> None:
        trt: Any = tensorrt
        self.errors: list[str] = []
        self.warnings: list[str] = []
        log = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                log.add(str(severity.name), message)

        self.logger: Any = Logger()

    def add(self, severity: str, message: str) -> None:
        """Keep errors and warnings; the rest is told to nobody."""
        kept = {"ERROR": self.errors, "INTERNAL_ERROR": self.errors, "WARNING": self.warnings}
        if severity in kept and len(kept[severity]) < _KEPT:
            kept[severity].append(" ".join(message.split()))

    def reason(self) -> str:
        """The first error: those behind it are mostly its consequences."""
        return self.errors[0] if self.errors else "TensorRT gave no reason"


def deserialize(engine: Engine, tensorrt: ModuleType, log: TensorrtLog) -> tuple[Any, Any]:
    """TensorRT's runtime and engine; keep the first as long as the second.

    The file is mapped, not read: peak memory stays near the engine's size. Plugins are to be
    registered before (`register_plugins`). Raises RuntimeUnavailableError with TensorRT's reason.
    """
    trt: Any = tensorrt
    try:
        runtime = trt.Runtime(log.logger)
    except TypeError:  # the bindings' word for a null pointer
        raise _refused(engine, tensorrt, log) from None
    with (
        open(engine.file, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        loaded = runtime.deserialize_cuda_engine(mapped)
    if loaded is None:
        raise _refused(engine, tensorrt, log)
    return runtime, loaded


def _refused(engine: Engine, tensorrt: ModuleType, log: TensorrtLog) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"{tensorrt.__name__} {tensorrt.__version__} does not load {engine.file}, which is whole "
        f"and of this version: {log.reason()}; a GPU and driver that it supports are needed"
    )
