"""The record of a runtime: data, and the names of the functions that are its code.

A function is named as an entry point is, "module:function", and imported when it is needed: the
record is read on machines that have none of the runtime's libraries.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from awq_edge.units import release


@dataclass(frozen=True)
class Memory:
    """The memory that a session takes beside the weights of the file and the KV cache.

    process: bytes of a process with the runtime's libraries and without a model.
    graph, layer: bytes that a session keeps of a model, and of each of its layers.
    activations: function (ModelSizes, context) -> bytes.
    arenas: function (Program, Storage) -> bytes of activations a row, by the kind of rows, which a
        bundle's manifest has; None where it has none.
    packing: function (ModelSizes) -> bytes, of copies of the weights that the session computes
        with; None where it reads those of the file.
    note: what a reader of `awq-edge fit` should know of these figures.
    """

    process: int
    activations: str
    graph: int = 0
    layer: int = 0
    arenas: str | None = None
    packing: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class NativeLayers:
    """Layers of the runtime itself, which --linear native and --attention native choose; the
    default are nodes of the plugin.

    activation_dtypes: with native layers for both.
    first_version: of the runtime with all of them; older ones have attention in primitives.
    """

    activation_dtypes: tuple[str, ...]
    first_version: str


@dataclass(frozen=True)
class EngineKind:
    """The TensorRT that `awq-edge build` builds engines with.

    title: its name in messages.
    module, distribution: its Python module, and the package that has it.
    ahead_of_time: whether it builds for named GPUs on any x86-64 machine; otherwise for the GPU of
        the machine that builds.
    """

    title: str
    module: str
    distribution: str
    ahead_of_time: bool


@dataclass(frozen=True)
class Runtime:
    """A runtime, as a recipe's runtime.backend and a bundle's manifest name it.

    session: function (Bundle, SessionOptions) -> Session. Its module imports the runtime's library.
    lowering: function (Checkpoint, GraphSpec, Recipe) -> Lowered.
    checks: function (Recipe, ExportedModel | None) that raises for what the runtime cannot execute;
        None where it executes every model.
    activation_dtypes: what it computes in.
    storage: function (Recipe, Program) -> Form, how weights lie in the bundle
        (`awq_edge.program.storage`).
    memory: see `Memory`.
    on_gpu: a GPU executes it; its recipes name the version of CUDA.
    uses_kernels: needs the library of plugins/; with native layers, unless both are native.
    recipe: what `--runtime` without `--recipe` takes.
    extra: the extra of pyproject.toml whose packages the session imports.
    native: None where there is no choice of layers.
    engine: None for a runtime without engines.
    """

    name: str
    session: str
    lowering: str
    activation_dtypes: tuple[str, ...]
    storage: str
    memory: Memory
    on_gpu: bool
    uses_kernels: bool
    checks: str | None = None
    recipe: str = "cpu"
    extra: str | None = None
    native: NativeLayers | None = None
    engine: EngineKind | None = None

    def decomposes(self, version: str) -> bool:
        """True where graphs for a version of the runtime have newer operators in primitives."""
        native = self.native
        return native is not None and release(version, None) < release(native.first_version, None)


def load(function: str) -> Any:
    """The function of "module:function". Raises ImportError where a library of it is missing."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)
