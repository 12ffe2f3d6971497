"""Linears ready to run: y = x W^T (+ b), or silu(gate) * up of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from awq_edge.kernels.interface import Dtype, Epilogue, Tactic, W4A16Weight
from awq_edge.runtime.backends.cuda.program import DenseLinear, Linear, QuantizedLinear

KERNEL_DTYPES = {torch.float16: Dtype.FLOAT16, torch.bfloat16: Dtype.BFLOAT16}


class Kernels(Protocol):
    """The kernel library; see `awq_edge.kernels.kernels.KernelLibrary`."""

    def call(self, name: str, *arguments: Any) -> None: ...

    def size(self, name: str, *arguments: Any) -> int: ...


class ReadyLinear(Protocol):
    """A linear whose weights are on the device."""

    out_features: int

    def workspace_bytes(self, max_rows: int) -> int:
        """Workspace for up to `max_rows` rows."""
        ...

    def run(self, x: torch.Tensor, y: torch.Tensor, workspace: torch.Tensor, stream: int) -> None:
        """Queue it. x: [rows, in]. y: [rows, out_features], written. Both contiguous."""
        ...


def ready_linear(
    linear: Linear, tensors: Mapping[str, torch.Tensor], kernels: Kernels, dtype: torch.dtype
) -> ReadyLinear:
    """A linear of a program with its tensors. dtype: of the activations."""
    if isinstance(linear, QuantizedLinear):
        return _W4A16(linear, tensors, kernels, dtype)
    return _Dense(linear, tensors)


class _W4A16:
    """awq_edge_w4a16_linear. out_features: of y; for a gate and an up projection half of the
    weight's."""

    def __init__(
        self,
        linear: QuantizedLinear,
        tensors: Mapping[str, torch.Tensor],
        kernels: Kernels,
        dtype: torch.dtype,
    ) -> None:
        def address(name: str | None) -> int | None:
            return None if name is None else tensors[name].data_ptr()

        self._kernels = kernels
        self.out_features = linear.out_features // (2 if linear.gate_up else 1)
        self._weight = W4A16Weight(
            bits=linear.bits,
            group_size=linear.group_size,
            in_features=linear.in_features,
            out_features=linear.out_features,
            dtype=KERNEL_DTYPES[dtype],
            epilogue=Epilogue.SILU_MUL if linear.gate_up else Epilogue.NONE,
            qweight=address(linear.qweight),
            scales=address(linear.scales),
            zeros=address(linear.zeros),
            bias=address(linear.bias),
        )

    def workspace_bytes(self, max_rows: int) -> int:
        return self._kernels.size("awq_edge_w4a16_workspace", self._weight, max_rows, Tactic.AUTO)

    def run(self, x: torch.Tensor, y: torch.Tensor, workspace: torch.Tensor, stream: int) -> None:
        self._kernels.call(
            "awq_edge_w4a16_linear",
            self._weight,
            x.data_ptr(),
            y.data_ptr(),
            x.shape[0],
            Tactic.AUTO,
            workspace.data_ptr(),
            workspace.nbytes,
            stream,
        )


class _Dense:
    """cuBLAS, through torch."""

    def __init__(self, linear: DenseLinear, tensors: Mapping[str, torch.Tensor]) -> None:
        self.out_features = linear.out_features
        self._weight_t = tensors[linear.weight].t()
        self._bias = None if linear.bias is None else tensors[linear.bias]

    def workspace_bytes(self, max_rows: int) -> int:
        return 0

    def run(self, x: torch.Tensor, y: torch.Tensor, workspace: torch.Tensor, stream: int) -> None:
        if self._bias is None:
            torch.mm(x, self._weight_t, out=y)
        else:
            torch.addmm(self._bias, x, self._weight_t, out=y)
