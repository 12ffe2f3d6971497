"""Quantized linears on a GPU: random packed weights, and the numbers that they stand for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from awq_edge.kernels.interface import COUNTER_BYTES, Dtype, Epilogue, W4A16Weight
from awq_edge.kernels.kernels import KernelLibrary
from tests.kernels.gpu.op_cases import exact_activation

DTYPES = {torch.float16: Dtype.FLOAT16, torch.bfloat16: Dtype.BFLOAT16}


@dataclass(frozen=True)
class Linear:
    """A weight on the device.

    qweight, scales, zeros: as packed; where the epilogue is of a pair, rows are gate and up in
    turns of eight. bias: [n] or None.
    """

    qweight: Any
    scales: Any
    zeros: Any
    bias: Any
    bits: int
    group_size: int
    in_features: int
    out_features: int
    dtype: torch.dtype
    epilogue: Epilogue = Epilogue.NONE

    @property
    def width(self) -> int:
        return self.out_features // 2 if self.epilogue.paired else self.out_features

    @property
    def parameters(self) -> W4A16Weight:
        return W4A16Weight(
            bits=self.bits,
            group_size=self.group_size,
            in_features=self.in_features,
            out_features=self.out_features,
            dtype=DTYPES[self.dtype],
            epilogue=self.epilogue,
            qweight=self.qweight.data_ptr(),
            scales=self.scales.data_ptr(),
            zeros=None if self.zeros is None else self.zeros.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
        )


def random_linear(
    n: int,
    k: int,
    *,
    bits: int = 4,
    group_size: int = 128,
    dtype: torch.dtype = torch.float16,
    symmetric: bool = False,
    bias: bool = False,
    epilogue: Epilogue = Epilogue.NONE,
    seed: int = 0,
) -> Linear:
    """Random words are random codes; the padding of tiles and blocks is random too."""
    generator = torch.Generator("cuda").manual_seed(seed)
    tiles, blocks = -(-n // 16), -(-k // 128)
    groups = blocks * 128 // group_size

    def words(*shape: int) -> Any:
        return torch.randint(
            -(2**31), 2**31, shape, dtype=torch.int32, device="cuda", generator=generator
        )

    zeros = words(tiles, groups, 4 if bits == 8 else 2)
    if bits == 3:  # zero points of four bits would not be of this format
        zeros &= 0x77777777
    scales = torch.rand(tiles, groups, 8, 2, device="cuda", generator=generator)
    return Linear(
        qweight=words(tiles, blocks, 64 * bits),
        scales=(scales / 2**bits / k**0.5 + 1e-6).half(),
        zeros=None if symmetric else zeros,
        bias=torch.randn(n, device="cuda", generator=generator).to(dtype) if bias else None,
        bits=bits,
        group_size=group_size,
        in_features=k,
        out_features=n,
        dtype=dtype,
        epilogue=epilogue,
    )


@functools.cache
def _places(bits: int) -> tuple[Any, Any]:
    """Word and shift of each bit of each code of a block: [16, 128, bits]. Written from the drawing
    in w4a16_layout.h, independent of packing.py."""
    words, shifts = [], []
    for row in range(16):
        for channel in range(128):
            lane = 4 * (row % 8) + channel // 8 % 4
            half, step = channel // 64, 2 * (channel // 32 % 2) + channel // 4 % 2
            register, element = row // 8 + 2 * (channel // 2 % 2), channel % 2
            pair = 4 * step + register
            for bit in range(bits):
                if bits == 4:
                    word, shift = 4 * half + step, 4 * register + 16 * element + bit
                elif bits == 8:
                    word = 8 * half + 2 * step + register // 2
                    shift = 16 * (register % 2) + 8 * element + bit
                elif pair < 15:
                    word = 3 * half + pair // 5
                    shift = 3 * (pair % 5) + 16 * element + bit
                else:
                    word, shift = 3 * half + bit, 15 + 16 * element
                vector, within = divmod(word, 4)
                width = min(4, 2 * bits - 4 * vector)
                words.append(vector * 128 + lane * width + within)
                shifts.append(shift)
    shape = (16, 128, bits)
    return (
        torch.tensor(words, device="cuda").reshape(shape),
        torch.tensor(shifts, device="cuda", dtype=torch.int32).reshape(shape),
    )


def codes_of(linear: Linear) -> Any:
    """uint8 codes [tiles * 16, blocks * 128]."""
    tiles, blocks = linear.qweight.shape[:2]
    words, shifts = _places(linear.bits)
    codes = torch.zeros(tiles, blocks, 16, 128, dtype=torch.uint8, device="cuda")
    for bit in range(linear.bits):
        picked = linear.qweight[:, :, words[..., bit].reshape(-1)].reshape(codes.shape)
        codes |= ((picked >> shifts[..., bit]) & 1).to(torch.uint8) << bit
    return codes.permute(0, 2, 1, 3).reshape(tiles * 16, blocks * 128)


def zeros_of(linear: Linear) -> Any:
    """Zero points [tiles * 16, groups]."""
    tiles, groups = linear.scales.shape[:2]
    if linear.zeros is None:
        return torch.full(
            (tiles * 16, groups), 2 ** (linear.bits - 1), dtype=torch.uint8, device="cuda"
        )
    octets = linear.zeros.view(torch.uint8).reshape(tiles, groups, -1)
    if linear.bits == 8:
        pairs = octets.reshape(tiles, groups, 8, 2)
    else:
        pairs = torch.stack([octets & 15, octets >> 4], dim=-1)
    return pairs.permute(0, 3, 2, 1).reshape(tiles * 16, groups)


def weight_of(linear: Linear) -> Any:
    """The numbers: float64 [n, k]; of a pair, gate above up."""
    codes = codes_of(linear)
    rows = len(codes)
    groups = linear.scales.shape[1]
    scales = linear.scales.double().permute(0, 3, 2, 1).reshape(rows, groups)
    difference = codes.reshape(rows, groups, -1).double() - zeros_of(linear).double()[..., None]
    weight = (difference * scales[..., None]).reshape(rows, -1)[:, : linear.in_features]
    if not linear.epilogue.paired:
        return weight[: linear.out_features]
    pairs = weight.reshape(-1, 2, 8, linear.in_features)
    return torch.cat([pairs[:, i].reshape(-1, linear.in_features)[: linear.width] for i in (0, 1)])


def reference(linear: Linear, weight: Any, x: Any) -> Any:
    """What the linear computes: float64 [m, width]. weight: of `weight_of`."""
    sums = x.double() @ weight.T
    if linear.bias is not None:
        sums += linear.bias.double()
    activation = linear.epilogue.activation
    if activation is None:
        return sums
    if not linear.epilogue.paired:
        return exact_activation(torch, sums, activation)
    gate, up = sums.chunk(2, dim=1)
    return exact_activation(torch, gate, activation) * up


class Runner:
    """Calls the kernels with a workspace of its own, whose counters must stay zero."""

    def __init__(self, library: KernelLibrary) -> None:
        self.library = library
        self._workspace = torch.zeros(COUNTER_BYTES, dtype=torch.uint8, device="cuda")

    def __call__(self, linear: Linear, x: Any, tactic: int = 0, y: Any = None) -> Any:
        """y [m, width]; poisoned with NaN before, so that what is not written shows."""
        if y is None:
            y = torch.full((len(x), linear.width), torch.nan, dtype=linear.dtype, device="cuda")
        parameters = linear.parameters
        needed = self.library.size("awq_edge_w4a16_workspace", parameters, len(x), tactic)
        if needed > self._workspace.numel():
            self._workspace = torch.zeros(needed, dtype=torch.uint8, device="cuda")
        self.library.call(
            "awq_edge_w4a16_linear",
            parameters,
            x.data_ptr(),
            y.data_ptr(),
            len(x),
            tactic,
            self._workspace.data_ptr(),
            self._workspace.numel(),
            torch.cuda.current_stream().cuda_stream,
        )
        return y

    def counters_are_zero(self) -> bool:
        return not bool(self._workspace[:COUNTER_BYTES].any())


def relative_error(y: Any, expected: Any) -> float:
    """|y - expected| / |expected|; NaN where anything is not written."""
    return float((y.double() - expected).norm() / expected.norm())
