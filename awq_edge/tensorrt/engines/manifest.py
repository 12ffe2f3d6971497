"""manifest.json of an engine: the tools, the GPU and the bundle that it was built with."""

from __future__ import annotations

from typing import ClassVar, Literal

from awq_edge.artifacts.config_keys import Positions, TensorSize
from awq_edge.artifacts.directories import FileEntry, InnerPath, TensorPort
from awq_edge.artifacts.schema import Manifest, Record

ENGINE_FILE = "model.engine"


class ShapeRange(Record):
    """Shapes of one input in a profile: the smallest, the one tuned for, the largest."""

    min: tuple[TensorSize, ...]
    opt: tuple[TensorSize, ...]
    max: tuple[TensorSize, ...]


class EngineProfile(Record):
    """An optimization profile; its index in the list is TensorRT's.

    min_tokens, max_tokens: limits of the tokens of one execution.
    max_rows: limit of the logits positions of one execution.
    shapes: of every input.
    """

    name: str
    min_tokens: Positions
    max_tokens: Positions
    max_rows: Positions
    shapes: dict[str, ShapeRange]


class PluginContract(Record):
    """The versions that an engine with plugin nodes needs on the machine that runs it.

    plugin_version: of the operators.
    layout_version: of packed weights.
    abi_version: of the kernel library's functions.
    library_sha256: of the kernel library that was there when the engine was built; told, not
    compared: another build of the same contract computes the same.
    """

    plugin_version: str
    layout_version: int
    abi_version: int
    library_sha256: str


class BuildFigures(Record):
    """The time and memory that a build took.

    peak_rss: resident bytes of TensorRT's process at its peak, None where the system does not tell.
    available_drop: bytes by which the system's available memory fell meanwhile; on a Jetson it has
    the GPU's share too, and whatever else ran.
    available_before: bytes available at the start.
    warnings: TensorRT's, such as tactics that it skipped for want of memory.
    """

    seconds: float
    peak_rss: int | None = None
    available_before: int | None = None
    available_drop: int | None = None
    warnings: tuple[str, ...] = ()


class EngineManifest(Manifest):
    """manifest.json of an engine.

    runtime: backend.
    runtime_version: of TensorRT, complete.
    sm: "SM89" is compute capability 8.9.
    bundle_sha256: of the bundle's manifest.json, which has the hash of every file.
    plugin: None for an engine without plugin nodes.
    inputs, outputs: as in the bundle's graph.
    """

    noun: ClassVar[str] = "a valid engine manifest"
    remedy: ClassVar[str] = "build the engine again"

    format: Literal["awq-edge-engine"] = "awq-edge-engine"
    format_version: Literal[1] = 1
    awq_edge_version: str
    commit: str | None
    model_name: str
    runtime: str
    runtime_version: str
    sm: str
    bundle_sha256: str
    plugin: PluginContract | None
    profiles: tuple[EngineProfile, ...]
    inputs: tuple[TensorPort, ...]
    outputs: tuple[TensorPort, ...]
    engine: InnerPath = ENGINE_FILE
    build: BuildFigures
    files: dict[InnerPath, FileEntry]
