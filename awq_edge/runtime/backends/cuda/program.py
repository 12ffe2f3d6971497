"""model.json of a bundle for runtime `cuda`: calls of operations, in order, and what they work on.

    tensors    weights, by name and place in the weight file
    state      what stays from call to call: the KV cache
    buffers    activations, in two arenas: one row a token of the call, one row a wanted token
    views      columns of a buffer
    calls      operation, inputs, outputs, attributes

Three inputs are given: `ids`, `past_length`, `wanted`. docs/cuda-backend.md describes the file,
`operations.py` has the operations.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from awq_edge.artifacts.config_keys import (
    MAX_VOCABULARY,
    ByteCount,
    Positions,
    TensorSize,
)
from awq_edge.artifacts.directories import BundleManifest
from awq_edge.artifacts.input_files import show
from awq_edge.artifacts.schema import Manifest, Record
from awq_edge.errors import ArtifactError

Dtype = Literal["float16", "bfloat16", "float32", "int32"]
# The number of rows of a buffer: tokens of the call, or those whose logits are wanted.
Rows = Literal["tokens", "wanted"]
ITEM_BYTES: dict[Dtype, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "int32": 4}
# int64 [rows], int64 [1], int64 [rows].
IDS, PAST_LENGTH, WANTED = "ids", "past_length", "wanted"
INPUTS = (IDS, PAST_LENGTH, WANTED)
CONTEXT = "context"  # in the shape of a state: the positions that the session has chosen
MAX_CALLS = 1 << 20
# A row of logits is the widest.
Width = Annotated[int, Field(ge=1, le=MAX_VOCABULARY)]
Column = Annotated[int, Field(ge=0, le=MAX_VOCABULARY)]


class TensorPlace(Record):
    """A tensor of the weight file: C order, little endian, `offset` bytes from its beginning."""

    dtype: Dtype
    shape: Annotated[tuple[TensorSize, ...], Field(max_length=8)]
    offset: ByteCount

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class State(Record):
    """Memory that stays from call to call. One "context" in the shape is the axis of positions,
    along which it can be cut back."""

    dtype: Dtype
    shape: Annotated[tuple[TensorSize | Literal["context"], ...], Field(min_length=1, max_length=8)]

    def sizes(self, context: int) -> tuple[int, ...]:
        """The shape for a number of positions."""
        return tuple(context if size == CONTEXT else int(size) for size in self.shape)

    def nbytes(self, context: int) -> int:
        return math.prod(self.sizes(context)) * ITEM_BYTES[self.dtype]


class Buffer(Record):
    """Rows of activations. offset: bytes, for each row that the arena has room for: a buffer of an
    arena for n rows begins n * offset bytes from its beginning."""

    rows: Rows
    width: Width
    dtype: Dtype
    offset: ByteCount


class View(Record):
    """`width` columns of a buffer, from `column` on."""

    buffer: str
    column: Column
    width: Width


class Call(Record):
    """One operation. name: the module that it computes. inputs, outputs: by the operation's own
    names: a tensor, a state, a buffer, a view or an input of the program."""

    operation: str
    name: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    attributes: dict[str, int | float | str] = {}


class CudaProgram(Manifest):
    """A model for the cuda runtime. arenas: bytes a row. logits: a buffer of wanted rows, float32.
    scores: logits in the activations' type, which sampling reads."""

    noun: ClassVar[str] = "a program of this version"
    remedy: ClassVar[str] = (
        "make the bundle again: `awq-edge export MODEL --runtime cuda --out BUNDLE --overwrite`"
    )

    format: Literal["awq-edge-cuda-program"] = "awq-edge-cuda-program"
    format_version: Literal[2] = 2
    layout_version: int  # of the quantized tensors
    activation_dtype: Literal["float16", "bfloat16"]
    vocab_size: Width
    context: Positions  # positions of the rotary tables
    logits: str
    scores: str
    arenas: dict[Rows, ByteCount]
    state: dict[str, State]
    buffers: dict[str, Buffer]
    views: dict[str, View]
    calls: Annotated[tuple[Call, ...], Field(min_length=1, max_length=MAX_CALLS)]
    tensors: dict[str, TensorPlace]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight file."""
        return max((place.offset + place.nbytes for place in self.tensors.values()), default=0)

    def state_bytes(self, context: int) -> int:
        """Bytes of the state for `context` positions."""
        return sum(state.nbytes(context) for state in self.state.values())

    def check(self, source: str, manifest: BundleManifest) -> None:
        """Raise ArtifactError where the program's sizes differ from the manifest's, where it names
        what is not there, or a buffer lies outside of its arena.

        source: its path.
        """
        problem = self._problem(manifest)
        if problem is not None:
            raise ArtifactError(f"{source}: {problem}; {self.remedy}")

    def _problem(self, manifest: BundleManifest) -> str | None:
        if self.vocab_size != manifest.vocab_size:
            return f"vocab_size is {self.vocab_size}, that of the manifest {manifest.vocab_size}"
        if self.context < manifest.context:
            return f"it has {self.context} positions, the manifest {manifest.context}"
        for name, buffer in self.buffers.items():
            end = buffer.offset + buffer.width * ITEM_BYTES[buffer.dtype]
            if end > self.arenas.get(buffer.rows, 0):
                return f"buffer {show(name)} lies outside of the arena of {buffer.rows}"
        for name, view in self.views.items():
            whole = self.buffers.get(view.buffer)
            if whole is None or view.column + view.width > whole.width:
                return f"view {show(name)} is not within a buffer"
        values = {*INPUTS, *self.tensors, *self.state, *self.buffers, *self.views}
        for call in self.calls:
            for value in (*call.inputs.values(), *call.outputs.values()):
                if value not in values:
                    return f"{show(call.name)} names {show(value)}, which is not there"
        for name, dtype in ((self.logits, "float32"), (self.scores, self.activation_dtype)):
            logits = self.buffers.get(name)
            wanted = ("wanted", self.vocab_size, dtype)
            if logits is None or (logits.rows, logits.width, logits.dtype) != wanted:
                return f"{show(name)} is no buffer of logits in {dtype}"
        for name, state in self.state.items():
            if state.shape.count(CONTEXT) != 1:
                return f"state {show(name)} has no axis of positions, or several"
        return None
