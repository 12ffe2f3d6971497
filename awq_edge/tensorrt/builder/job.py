"""Messages to and from the process that builds an engine: JSON, a line each."""

from __future__ import annotations

from typing import Literal

from awq_edge.artifacts.directories import TensorPort
from awq_edge.artifacts.schema import Record
from awq_edge.tensorrt.engines.manifest import EngineProfile


class BuildJob(Record):
    """The build of one engine.

    module: TensorRT's Python module.
    graph: path of the ONNX file.
    engine: path to write.
    sm: "SM89".
    timing_cache: path, of TensorRT on the device only.
    workspace_bytes: of the builder, None for its own choice.
    """

    module: str
    graph: str
    engine: str
    sm: str
    plugins: bool
    profiles: tuple[EngineProfile, ...]
    inputs: tuple[TensorPort, ...]
    outputs: tuple[TensorPort, ...]
    timing_cache: str | None
    workspace_bytes: int | None


class Progress(Record):
    """The progress of a build.

    fraction: of the whole build, 0 to 1.
    phase: TensorRT's name of its step.
    """

    kind: Literal["progress"] = "progress"
    fraction: float
    phase: str


class Finished(Record):
    """The end of a build that succeeded.

    peak_rss: bytes of the process at its peak.
    warnings: TensorRT's.
    """

    kind: Literal["finished"] = "finished"
    seconds: float
    peak_rss: int | None
    warnings: tuple[str, ...]


class Failed(Record):
    """The end of a build that failed.

    error: name of a class of awq_edge.errors.
    """

    kind: Literal["failed"] = "failed"
    error: str
    message: str
