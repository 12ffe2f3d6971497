"""The tools that every part of the canonical graph is built with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from awq_edge.exporter.graph import GraphBuilder
from awq_edge.exporter.sources import Sources
from awq_edge.exporter.weights import BFLOAT16, FLOAT16, FLOAT32
from awq_edge.model.archs import Decoder, Linear
from awq_edge.model.archs.base import Architecture
from awq_edge.model.checkpoint import Checkpoint

INT64 = int(TensorProto.INT64)
_NUMPY: dict[int, type[np.generic]] = {
    FLOAT16: np.float16,
    BFLOAT16: ml_dtypes.bfloat16,
    FLOAT32: np.float32,
}


def numpy_type(dtype: int) -> type[np.generic]:
    """The NumPy type of activations. dtype: of onnx.TensorProto."""
    return _NUMPY[dtype]


Operand: TypeAlias = "gs.Variable | gs.Constant"


@dataclass(frozen=True)
class Building:
    """A graph that is being built.

    context: positions of the KV cache. dtype: of the activations, of onnx.TensorProto.
    """

    checkpoint: Checkpoint
    builder: GraphBuilder
    sources: Sources
    context: int
    dtype: int
    _linears: dict[int, dict[str, Linear]] = field(default_factory=dict)

    @property
    def decoder(self) -> Decoder:
        return self.checkpoint.decoder

    @property
    def arch(self) -> Architecture:
        return self.checkpoint.decoder.architecture

    def linear(self, layer: int, name: str) -> Linear:
        """A linear of a block by its name relative to the block."""
        if layer not in self._linears:  # a block of experts has hundreds
            self._linears[layer] = {item.name: item for item in self.decoder.linears(layer)}
        return self._linears[layer][name]

    def scaled(self, path: str, x: gs.Variable, name: str, factor: float) -> gs.Variable:
        """x times a factor, whose constant is called `name`; x itself for a factor of 1."""
        if factor == 1.0:
            return x
        constant = self.builder.inline(name, factor, _NUMPY[self.dtype])
        return self.op(f"{path}/Mul", [x, constant], x.shape)

    def op(
        self,
        name: str,
        inputs: Sequence[Operand],
        shape: Sequence[int | str],
        attributes: dict[str, Any] | None = None,
        dtype: int | None = None,
    ) -> gs.Variable:
        """A node of one output, of the operator that its name ends in: "/model/norm/Add".

        shape: of the output. dtype: of the output; None for that of the activations.
        """
        result = (self.dtype if dtype is None else dtype, shape)
        (output,) = self.builder.node(name.rpartition("/")[2], name, inputs, [result], attributes)
        return output


def parent_of(prefix: str, name: str) -> str:
    """The module that holds a part of a block: ("model.layers.0", "mlp.down_proj") ->
    "model.layers.0.mlp"; the block itself where it holds the part directly."""
    return f"{prefix}.{name}".rpartition(".")[0]
