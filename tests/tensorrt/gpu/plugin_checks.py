"""W4A16Linear of both plugins on a GPU, driven as TensorRT drives it, against float64.

Workspaces and outputs are filled with ones (all bits) before each call: the workspace that TensorRT
hands out holds what other layers left there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from awq_edge.kernels.packing import PackedWeight, pack, pack_gate_up
from awq_edge.model.w4a16 import QuantizedWeight
from awq_edge.tensorrt.contract import W4A16_LINEAR
from awq_edge.tensorrt.op_contract import Number
from tests.tensorrt.drivers import RUNTIME, Driver, Plugin
from tests.tensorrt.stub_tensorrt import DataType

# Of the largest output: rounding to the activation dtype (2^-11, 2^-8), and of what the epilogue
# multiplies.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
TYPES = {
    torch.float16: DataType.HALF,
    torch.bfloat16: DataType.BF16,
    torch.float32: DataType.FLOAT,
    torch.int32: DataType.INT32,
    torch.int64: DataType.INT64,
    torch.int8: DataType.INT8,
}


@dataclass(frozen=True)
class LinearCase:
    """rows: of the call; profile: least and most rows that the plugin is configured for."""

    bits: int
    group_size: int
    rows: int
    profile: tuple[int, int]
    dtype: torch.dtype = torch.float16
    zeros: bool = True
    bias: bool = False
    silu_mul: bool = False
    in_features: int = 512
    out_features: int = 200


LINEAR_CASES = (
    LinearCase(4, 128, 1, (1, 16)),
    LinearCase(4, 64, 16, (1, 16), torch.bfloat16, bias=True),
    LinearCase(3, 32, 7, (1, 512), zeros=False),
    LinearCase(8, 128, 65, (17, 512), torch.bfloat16),
    LinearCase(4, 128, 130, (1, 512), bias=True, in_features=1152, out_features=4104),
    LinearCase(4, 128, 1, (1, 16), silu_mul=True, out_features=416, bias=True),
    LinearCase(4, 128, 33, (17, 512), silu_mul=True, out_features=416),
)


def random_weight(case: LinearCase, rows: int, seed: int) -> QuantizedWeight:
    random = np.random.default_rng(seed)
    groups = (rows, case.in_features // case.group_size)
    middle = np.full(groups, 2 ** (case.bits - 1), np.uint8)
    zeros = random.integers(0, 2**case.bits, groups, dtype=np.uint8) if case.zeros else middle
    return QuantizedWeight(
        codes=random.integers(0, 2**case.bits, (rows, case.in_features), dtype=np.uint8),
        scales=(random.uniform(0.5, 1.5, groups) / 2**case.bits / 8).astype(np.float16),
        zeros=zeros,
        bits=case.bits,
    )


def numbers_of(weight: QuantizedWeight, group_size: int) -> torch.Tensor:
    """float64 [rows, in_features]."""
    codes = weight.codes.astype(np.float64)
    spread = (np.repeat(each, group_size, axis=1) for each in (weight.zeros, weight.scales))
    zeros, scales = (each.astype(np.float64) for each in spread)
    return torch.from_numpy((codes - zeros) * scales).cuda()


def on_gpu(packed: PackedWeight) -> list[torch.Tensor]:
    arrays = [packed.qweight, packed.scales]
    if packed.zeros is not None:
        arrays.append(packed.zeros)
    return [torch.from_numpy(np.ascontiguousarray(array)).cuda() for array in arrays]


def ones(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """All bits set: NaN, or -1."""
    bytes_ = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    return torch.full((bytes_,), 255, dtype=torch.uint8, device="cuda").view(dtype).reshape(shape)


def run(plugin: Plugin, inputs: list[torch.Tensor], outputs: list[torch.Tensor], size: int) -> None:
    """Enqueue with a workspace of `size` bytes that is full of ones."""
    workspace = ones([max(size, 16)], torch.uint8)
    plugin.enqueue(
        [tensor.data_ptr() for tensor in inputs],
        [tensor.data_ptr() for tensor in outputs],
        workspace.data_ptr() if size else 0,
        torch.cuda.current_stream().cuda_stream,
    )
    torch.cuda.synchronize()


def check_linear(driver: Driver, case: LinearCase) -> list[tuple[int, torch.Tensor]]:
    """Run every tactic that the plugin offers; returns (tactic, y)."""
    if case.silu_mul:
        halves = [random_weight(case, case.out_features // 2, seed) for seed in (1, 2)]
        packed = pack_gate_up(*halves)
        numbers = torch.cat([numbers_of(half, case.group_size) for half in halves])
    else:
        weight = random_weight(case, case.out_features, 1)
        packed, numbers = pack(weight), numbers_of(weight, case.group_size)
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").to(case.dtype)

    inputs = [normal(1, case.rows, case.in_features), *on_gpu(packed)]
    expected = inputs[0].double() @ numbers.T
    if case.bias:
        inputs.append(normal(case.out_features))
        expected += inputs[-1].double()
    if case.silu_mul:
        gate, up = expected.chunk(2, dim=-1)
        expected = torch.nn.functional.silu(gate) * up
    fields: dict[str, Number] = {
        "bits": case.bits,
        "group_size": case.group_size,
        "in_features": case.in_features,
        "out_features": case.out_features,
        "layout_version": 1,
        "has_zeros": int(packed.zeros is not None),
        "has_bias": int(case.bias),
        "epilogue": int(case.silu_mul),
    }
    types = [TYPES[tensor.dtype] for tensor in inputs]
    shapes = [list(tensor.shape) for tensor in inputs]
    smallest, largest = ([[1, rows, case.in_features], *shapes[1:]] for rows in case.profile)
    plugin = driver.create(W4A16_LINEAR.name, fields)
    plugin.configure(types, smallest, largest)
    results = []
    for tactic in plugin.tactics() or [0]:
        plugin.set_tactic(tactic)
        size = plugin.workspace(types, largest)
        again = driver.create(W4A16_LINEAR.name, fields, RUNTIME)
        again.set_tactic(tactic)
        again.attach()
        again.shape_change(types, shapes)
        y = ones(list(expected.shape), case.dtype)
        run(again, inputs, [y], size)
        error = (y.double() - expected).abs().max() / expected.abs().max()
        assert float(error) <= TOLERANCE[case.dtype], f"{case}, tactic {tactic}: {float(error)}"
        results.append((tactic, y))
    return results


def check_capture(driver: Driver) -> None:
    """A call is captured into a CUDA graph and replayed with other inputs."""
    case = LINEAR_CASES[0]
    weight = random_weight(case, case.out_features, 1)
    packed = pack(weight)
    x = torch.randn(1, 1, case.in_features, device="cuda").to(case.dtype)
    inputs = [x, *on_gpu(packed)]
    types = [TYPES[tensor.dtype] for tensor in inputs]
    shapes = [list(tensor.shape) for tensor in inputs]
    fields: dict[str, Number] = {
        "bits": case.bits,
        "group_size": case.group_size,
        "in_features": case.in_features,
        "out_features": case.out_features,
        "layout_version": 1,
        "has_zeros": 1,
    }
    plugin = driver.create(W4A16_LINEAR.name, fields)
    plugin.configure(types, shapes, shapes)
    size = plugin.workspace(types, shapes)
    plugin.attach()
    plugin.shape_change(types, shapes)
    workspace = ones([max(size, 16)], torch.uint8)
    y = ones([1, 1, case.out_features], case.dtype)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plugin.enqueue(
            [tensor.data_ptr() for tensor in inputs],
            [y.data_ptr()],
            workspace.data_ptr() if size else 0,
            torch.cuda.current_stream().cuda_stream,
        )
    numbers = numbers_of(weight, case.group_size)
    for _ in range(3):
        x.normal_()
        workspace.fill_(255)
        graph.replay()
        torch.cuda.synchronize()
        expected = x.double() @ numbers.T
        error = (y.double() - expected).abs().max() / expected.abs().max()
        assert float(error) <= TOLERANCE[case.dtype], float(error)
