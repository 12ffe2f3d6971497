"""The calls of an operator's plugin to the kernel library: tactics, workspace, the call itself.

Shapes here were checked against the contract already. plugins/tensorrt/ has the same in C++.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from awq_edge.errors import ConfigError, KernelError
from awq_edge.kernels.interface import (
    COUNTER_BYTES,
    DECODE_ROWS,
    MAX_ROWS,
    AttentionParameters,
    Dtype,
    Tactic,
    W4A16Weight,
)
from awq_edge.kernels.kernels import KernelLibrary
from awq_edge.tensorrt.contract import CACHED_ATTENTION, W4A16_LINEAR
from awq_edge.tensorrt.op_contract import Number

Shapes = Sequence[Sequence[int]]

_DTYPE = {"float16": Dtype.FLOAT16, "bfloat16": Dtype.BFLOAT16}
_BYTES = {"float16": 2, "bfloat16": 2, "int8": 1, "float32": 4}


class OpCall(Protocol):
    """The calls of one node.

    dtype: of the activations, "float16" or "bfloat16".
    shapes: of the node's inputs in order.

    Raises ConfigError for what the kernels cannot take, KernelError where they refuse.
    """

    tactic: int

    def configure(self, dtype: str, smallest: Shapes, largest: Shapes) -> None:
        """Take note of the profile that tactics and workspace are for."""

    def tactics(self) -> list[int]:
        """The tactics that TensorRT may choose from for that profile; empty: nothing to choose."""

    def workspace(self, dtype: str, largest: Shapes) -> int:
        """Bytes for any call with inputs up to these shapes."""

    def prepare(self, dtype: str, shapes: Shapes, dimensions: dict[str, int]) -> None:
        """Take note of the shapes of the calls to come."""

    def enqueue(
        self, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None:
        """Put the call into the stream; device addresses. Neither allocates nor waits."""


class LinearCall:
    """awq_edge_w4a16_linear for one node.

    A profile of decode only has the tactic for it, one of prefill only may choose between the
    prefill tactics. One that spans both leaves the choice to the library, call by call: TensorRT
    would time at the optimum shape and keep the answer for all.
    """

    def __init__(self, values: dict[str, Number], library: KernelLibrary) -> None:
        self.tactic = int(Tactic.AUTO)
        self._values = values
        self._library = library
        self._names = [tensor.name for tensor in W4A16_LINEAR.inputs_of(values)]
        self._weight = self._describe(Dtype.FLOAT16)
        self._profile = (0, 0)
        self._rows = 0
        self._bytes = 0
        self._sized_for = self.tactic

    def configure(self, dtype: str, smallest: Shapes, largest: Shapes) -> None:
        self._weight = self._describe(_DTYPE[dtype])
        self._profile = (_rows(smallest[0]), _rows(largest[0]))

    def tactics(self) -> list[int]:
        least, most = self._profile
        if most <= DECODE_ROWS:
            return [int(Tactic.DECODE)]
        if least <= DECODE_ROWS:
            return []
        tactics = [int(Tactic.GEMM)]
        try:
            self._size(most, Tactic.CUBLASLT)
        except KernelError:
            return tactics
        return [*tactics, int(Tactic.CUBLASLT)]

    def workspace(self, dtype: str, largest: Shapes) -> int:
        self._weight = self._describe(_DTYPE[dtype])
        tactics = {self.tactic, *self.tactics()}
        if len(tactics) > 1:
            tactics.discard(Tactic.AUTO)  # one of the others will be set
        return max(self._size(_rows(largest[0]), tactic) for tactic in tactics)

    def prepare(self, dtype: str, shapes: Shapes, dimensions: dict[str, int]) -> None:
        self._weight = self._describe(_DTYPE[dtype])
        self._rows = _rows(shapes[0])
        self._measure()

    def enqueue(
        self, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None:
        if self._rows == 0:
            return
        if self._sized_for != self.tactic:
            self._measure()
        address = dict(zip(self._names, inputs, strict=True))
        weight = self._weight
        weight.qweight, weight.scales = address["qweight"], address["scales"]
        weight.zeros, weight.bias = address.get("zeros"), address.get("bias")
        if self._bytes > COUNTER_BYTES:  # else nothing is split, and the counters are not touched
            self._library.call("awq_edge_clear_counters", workspace, stream)
        self._library.call(
            "awq_edge_w4a16_linear",
            *(weight, address["x"], outputs[0], self._rows, self.tactic),
            *(workspace if self._bytes else None, self._bytes, stream),
        )

    def _measure(self) -> None:
        """The workspace of the calls to come; the tactic may be set before or after the shapes."""
        self._bytes = self._size(self._rows, self.tactic) if self._rows else 0
        self._sized_for = self.tactic

    def _size(self, rows: int, tactic: int) -> int:
        return self._library.size("awq_edge_w4a16_workspace", self._weight, rows, int(tactic))

    def _describe(self, dtype: Dtype) -> W4A16Weight:
        names = ("bits", "group_size", "in_features", "out_features", "epilogue")
        return W4A16Weight(dtype=dtype, **{name: int(self._values[name]) for name in names})


class AttentionCall:
    """awq_edge_cached_attention for one node.

    The kernels work in place: where present is other memory than past, past is copied there first.
    """

    def __init__(self, values: dict[str, Number], library: KernelLibrary) -> None:
        self.tactic = 0
        self._values = values
        self._library = library
        self._inputs = CACHED_ATTENTION.inputs_of(values)
        self._outputs = CACHED_ATTENTION.outputs_of(values)
        self._parameters = AttentionParameters()
        self._bytes = 0
        self._cache_bytes: dict[str, int] = {}

    def configure(self, dtype: str, smallest: Shapes, largest: Shapes) -> None:
        """Nothing depends on the profile but the workspace."""

    def tactics(self) -> list[int]:
        return []

    def workspace(self, dtype: str, largest: Shapes) -> int:
        parameters = self._describe(dtype, CACHED_ATTENTION.check_shapes(self._values, largest))
        return self._library.size("awq_edge_cached_attention_workspace", parameters)

    def prepare(self, dtype: str, shapes: Shapes, dimensions: dict[str, int]) -> None:
        self._parameters = self._describe(dtype, dimensions)
        self._bytes = self._library.size("awq_edge_cached_attention_workspace", self._parameters)
        self._cache_bytes = {}
        for tensor, shape in zip(self._inputs, shapes, strict=True):
            stored = {"float32": "float32", "cache": self._cache_dtype(dtype)}.get(tensor.dtype)
            if stored is not None:
                self._cache_bytes[tensor.name] = math.prod(shape) * _BYTES[stored]

    def enqueue(
        self, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None:
        parameters = self._parameters
        if parameters.batch == 0 or parameters.tokens == 0:
            return
        address = {tensor.name: at for tensor, at in zip(self._inputs, inputs, strict=True)}
        address |= {tensor.name: at for tensor, at in zip(self._outputs, outputs, strict=True)}
        for tensor in self._outputs:
            if tensor.alias and address[tensor.alias] != address[tensor.name]:
                self._library.call(
                    "awq_edge_copy",
                    *(address[tensor.alias], address[tensor.name]),
                    *(self._cache_bytes[tensor.alias], stream),
                )
        self._point(parameters, address)
        if self._bytes:
            self._library.call("awq_edge_clear_counters", workspace, stream)
        self._library.call(
            "awq_edge_cached_attention",
            *(parameters, workspace if self._bytes else None, self._bytes, stream),
        )

    def _point(self, parameters: AttentionParameters, address: dict[str, int]) -> None:
        values = self._values
        if values["merged_qkv"]:
            size = int(values["head_size"]) * _BYTES["float16"]
            parameters.q = address["qkv"]
            parameters.k = address["qkv"] + int(values["num_heads"]) * size
            parameters.v = parameters.k + int(values["num_kv_heads"]) * size
        else:
            parameters.q, parameters.k, parameters.v = (address[name] for name in ("q", "k", "v"))
        for name in ("past_length", "cosine", "sine", "q_norm", "k_norm", "y"):
            setattr(parameters, name, address.get(name))
        parameters.key_cache, parameters.value_cache = (
            address["present_key"],
            address["present_value"],
        )
        parameters.key_scales = address.get("present_key_scales")
        parameters.value_scales = address.get("present_value_scales")

    def _describe(self, dtype: str, dimensions: dict[str, int]) -> AttentionParameters:
        values = self._values
        names = ("num_heads", "num_kv_heads", "head_size", "rotary_size", "window")
        parameters = AttentionParameters(
            dtype=_DTYPE[dtype],
            kv_dtype=Dtype.INT8 if values["int8_cache"] else _DTYPE[dtype],
            scale=values["scale"],
            soft_cap=values["soft_cap"],
            norm_eps=values["norm_eps"],
            **{name: int(values[name]) for name in names},
            **{name: dimensions[name] for name in ("batch", "tokens", "context")},
        )
        row = dimensions["q_features"], dimensions["kv_features"], dimensions["kv_features"]
        if values["merged_qkv"]:
            row = (dimensions["qkv_features"],) * 3
        parameters.q_stride, parameters.k_stride, parameters.v_stride = row
        return parameters

    def _cache_dtype(self, dtype: str) -> str:
        return "int8" if self._values["int8_cache"] else dtype


def _rows(shape: Sequence[int]) -> int:
    """The rows of x; raises ConfigError where they are more than one call takes."""
    rows = math.prod(shape[:-1])
    if rows > MAX_ROWS:
        raise ConfigError(
            f"W4A16Linear: x is [{', '.join(map(str, shape))}], {rows} rows, must be at most "
            f"{MAX_ROWS}: build with a smaller maximum of batch times tokens"
        )
    return rows


CALLS: dict[str, Callable[[dict[str, Number], KernelLibrary], OpCall]] = {
    W4A16_LINEAR.name: LinearCall,
    CACHED_ATTENTION.name: AttentionCall,
}
