"""What the process that builds an engine is told, and what it tells: JSON, a line each."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from awq_edge.artifacts.directories import TensorPort
from awq_edge.tensorrt.engines.manifest import EngineProfile


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildJob(_Message):
    """module: TensorRT's Python module. graph: path of the ONNX file. engine: path to write. sm:
    "SM89". aliasing: a node says that its output is its input's memory. timing_cache: path, of
    TensorRT on the device only. workspace_bytes: of the builder, None for its own choice."""

    module: str
    graph: str
    engine: str
    sm: str
    plugins: bool
    aliasing: bool
    profiles: tuple[EngineProfile, ...]
    inputs: tuple[TensorPort, ...]
    outputs: tuple[TensorPort, ...]
    timing_cache: str | None
    workspace_bytes: int | None


class Progress(_Message):
    """fraction: of the whole build, 0 to 1. phase: TensorRT's name of what is being done."""

    kind: Literal["progress"] = "progress"
    fraction: float
    phase: str


class Finished(_Message):
    """peak_rss: bytes of the process at its peak. warnings: TensorRT's."""

    kind: Literal["finished"] = "finished"
    seconds: float
    peak_rss: int | None
    warnings: tuple[str, ...]


class Failed(_Message):
    """error: name of a class of awq_edge.errors."""

    kind: Literal["failed"] = "failed"
    error: str
    message: str
