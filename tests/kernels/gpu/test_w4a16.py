"""The quantized linear on a GPU, against float64 products of the numbers the codes stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import Epilogue, Tactic
from awq_edge.kernels.kernels import load_kernels
from awq_edge.kernels.packing import PackedWeight, pack, pack_gate_up, unpack
from awq_edge.model.w4a16 import QuantizedWeight, dequantize

torch = pytest.importorskip("torch", reason="needs torch")

from .w4a16_cases import (  # noqa: E402
    Linear,
    Runner,
    codes_of,
    random_linear,
    reference,
    relative_error,
    weight_of,
    zeros_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

HALF, BRAIN = torch.float16, torch.bfloat16
# Outputs are rounded once: a relative error of at most 2^-11 or 2^-8. Sums in float32 add 1e-6.
# That no code is wrong is for the exact tests below.
TOLERANCE = {HALF: 5e-4, BRAIN: 4e-3}
# cuBLASLt's weights are rounded too, and its sums before the bias is added.
ROUNDED_WEIGHTS = 3
# f(gate) * up is of two factors, and amplifies differences where the gate is negative.
ACTIVATION = 2
ALL_M = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 512, 4096)
# (n, k) of Llama-2-7B, Llama-3-8B and Qwen3-4B, merged as they run: qkv, o, gate and up, down.
REAL_SHAPES = {
    "Llama-2-7B": ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)),
    "Llama-3-8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "Qwen3-4B": ((6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728)),
}


@pytest.fixture(scope="module")
def run() -> Any:
    runner = Runner(load_kernels())
    yield runner
    assert runner.counters_are_zero()


def tolerance(linear: Linear, tactic: int, m: int) -> float:
    value = TOLERANCE[linear.dtype]
    if tactic == Tactic.CUBLASLT or (tactic == Tactic.AUTO and m > 16):
        value *= ROUNDED_WEIGHTS
    return value if linear.epilogue == Epilogue.NONE else value * ACTIVATION


def tactics(m: int) -> tuple[int, ...]:
    every = (Tactic.AUTO, Tactic.GEMM, Tactic.CUBLASLT)
    return (*every, Tactic.DECODE) if m <= 16 else every


def check(run: Runner, linear: Linear, x: Any, weight: Any = None) -> None:
    weight = weight_of(linear) if weight is None else weight
    expected = reference(linear, weight, x)
    for tactic in tactics(len(x)):
        error = relative_error(run(linear, x, tactic), expected)
        # Written so that NaN, from an output that nobody wrote, fails.
        assert error < tolerance(linear, tactic, len(x)), (len(x), Tactic(tactic).name, error)


@pytest.mark.parametrize("name", REAL_SHAPES)
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_every_m_on_real_shapes(run: Runner, name: str, dtype: Any) -> None:
    for n, k in REAL_SHAPES[name]:
        linear = random_linear(n, k, dtype=dtype, seed=n + k)
        weight = weight_of(linear)
        for m in ALL_M:
            check(run, linear, torch.randn(m, k, device="cuda", dtype=dtype), weight)


@pytest.mark.parametrize("n", [8, 40, 96, 4104])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_rows_that_are_no_whole_tile(
    run: Runner, n: int, bits: int, group_size: int, dtype: Any
) -> None:
    for k in (group_size, 256 + group_size, 1024):
        for symmetric in (False, True):
            linear = random_linear(
                n,
                k,
                bits=bits,
                group_size=group_size,
                dtype=dtype,
                symmetric=symmetric,
                bias=not symmetric,
                seed=n + k,
            )
            weight = weight_of(linear)
            for m in (1, 2, 8, 9, 16, 17, 33, 65, 129):
                check(run, linear, torch.randn(m, k, device="cuda", dtype=dtype), weight)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("epilogue", [each for each in Epilogue if each.paired], ids=str)
def test_activation_of_gate_times_up(
    run: Runner, bits: int, dtype: Any, bias: bool, epilogue: Epilogue
) -> None:
    for width, k in ((8, 128), (44, 384), (1000, 2048)):
        linear = random_linear(
            2 * -(-width // 8) * 8, k, bits=bits, dtype=dtype, bias=bias, epilogue=epilogue
        )
        # The last rows of gate and of up are padding.
        linear = replace(
            linear,
            out_features=2 * width,
            bias=None if linear.bias is None else linear.bias[: 2 * width].contiguous(),
        )
        weight = weight_of(linear)
        for m in (1, 9, 16, 20, 200):
            check(run, linear, torch.randn(m, k, device="cuda", dtype=dtype), weight)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("epilogue", [each for each in Epilogue if not each.paired], ids=str)
def test_activation_behind_the_bias(run: Runner, dtype: Any, epilogue: Epilogue) -> None:
    for n, k in ((8, 128), (44, 384), (3072, 768)):
        linear = random_linear(n, k, dtype=dtype, bias=True, epilogue=epilogue)
        weight = weight_of(linear)
        for m in (1, 9, 16, 20, 200):
            check(run, linear, torch.randn(m, k, device="cuda", dtype=dtype), weight)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_one_hot_inputs_recover_every_weight_bit_for_bit(
    run: Runner, bits: int, dtype: Any
) -> None:
    """Scales are powers of two, so that code minus zero point times scale is exact in both types;
    unlike a norm, this sees a single wrong code."""
    n, k = 48, 256
    linear = random_linear(n, k, bits=bits, group_size=64, dtype=dtype)
    powers = torch.randint(-6, 2, linear.scales.shape, device="cuda")
    linear = replace(linear, scales=torch.exp2(powers.float()).half())
    expected = weight_of(linear).T.to(dtype)
    identity = torch.eye(k, device="cuda", dtype=dtype)
    for tactic in (Tactic.GEMM, Tactic.CUBLASLT):
        assert torch.equal(run(linear, identity, tactic), expected)
    for begin in range(0, k, 16):
        rows = slice(begin, begin + 16)
        assert torch.equal(run(linear, identity[rows], Tactic.DECODE), expected[rows])
    dense = torch.full((n, k), torch.nan, dtype=dtype, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    run.library.call("awq_edge_w4a16_dequantize", linear.parameters, dense.data_ptr(), stream)
    assert torch.equal(dense, expected.T)


def on_device(packed: PackedWeight, dtype: Any) -> Linear:
    zeros = None if packed.zeros is None else torch.from_numpy(packed.zeros).cuda()
    return Linear(
        qweight=torch.from_numpy(packed.qweight).cuda(),
        scales=torch.from_numpy(packed.scales).cuda(),
        zeros=zeros,
        bias=None,
        bits=packed.bits,
        group_size=packed.group_size,
        in_features=packed.in_features,
        out_features=packed.out_features,
        dtype=dtype,
        epilogue=Epilogue.SILU_MUL if packed.paired else Epilogue.NONE,
    )


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("paired", [False, True])
def test_what_python_packs_is_what_the_kernels_read(run: Runner, bits: int, paired: bool) -> None:
    random = np.random.default_rng(bits)
    n, k, group_size = 40, 384, 128

    def weight() -> QuantizedWeight:
        return QuantizedWeight(
            codes=random.integers(0, 2**bits, (n, k), dtype=np.uint8),
            scales=random.uniform(0.01, 0.1, (n, k // group_size)).astype(np.float16),
            zeros=random.integers(0, 2**bits, (n, k // group_size), dtype=np.uint8),
            bits=bits,
        )

    packed = pack_gate_up(weight(), weight()) if paired else pack(weight())
    linear = on_device(packed, HALF)
    numbers = torch.from_numpy(dequantize(unpack(packed))).double().cuda()
    torch.testing.assert_close(weight_of(linear), numbers, rtol=1e-6, atol=0)
    check(run, linear, torch.randn(5, k, device="cuda", dtype=HALF) / 8, numbers)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("extreme", [0, -1])
def test_extreme_zero_points(run: Runner, bits: int, extreme: int) -> None:
    """All zero points 0, or the largest code."""
    linear = random_linear(96, 512, bits=bits)
    word = 0 if extreme == 0 else {3: 0x77777777, 4: -1, 8: -1}[bits]
    linear = replace(linear, zeros=torch.full_like(linear.zeros, word))
    expected = 0 if extreme == 0 else 2**bits - 1
    assert bool((zeros_of(linear) == expected).all())
    for m in (1, 16, 40):
        check(run, linear, torch.randn(m, 512, device="cuda", dtype=HALF))


def test_zero_scales_give_zero(run: Runner) -> None:
    linear = random_linear(96, 512)
    linear = replace(linear, scales=torch.zeros_like(linear.scales))
    for m in (1, 16, 40):
        for tactic in tactics(m):
            y = run(linear, torch.randn(m, 512, device="cuda", dtype=HALF), tactic)
            assert not bool(y.any())


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_inputs_of_a_thousand(run: Runner, dtype: Any) -> None:
    linear = random_linear(4096, 4096, dtype=dtype)
    for m in (1, 16, 70):
        x = torch.randn(m, 4096, device="cuda", dtype=dtype)
        x[:, ::97] *= 1e3
        check(run, linear, x)


def test_a_corrupted_packing_fails(run: Runner) -> None:
    """The comparison above can fail: one wrong bit of one code is seen."""
    linear = random_linear(96, 512)
    weight = weight_of(linear)
    broken = linear.qweight.clone()
    broken[2, 1, 77] ^= 1 << 19
    x = torch.eye(512, device="cuda", dtype=HALF)
    expected = reference(linear, weight, x)
    difference = run(replace(linear, qweight=broken), x, Tactic.GEMM).double() - expected
    assert int((difference.abs() > 1e-4).sum()) == 1
    assert bool((codes_of(replace(linear, qweight=broken)) != codes_of(linear)).sum() == 1)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 4096, 14336), (13, 1024, 4096), (100, 512, 8192)])
def test_the_same_bits_every_time(run: Runner, m: int, n: int, k: int) -> None:
    linear = random_linear(n, k)
    x = torch.randn(m, k, device="cuda", dtype=HALF)
    for tactic in tactics(m):
        first = run(linear, x, tactic)
        for _ in range(20):
            assert torch.equal(run(linear, x, tactic), first)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1024, 14336), (40, 512, 8192)])
def test_a_thousand_replays_of_a_graph(run: Runner, m: int, n: int, k: int) -> None:
    linear = random_linear(n, k)
    x = torch.randn(m, k, device="cuda", dtype=HALF)
    expected = run(linear, x)
    y = torch.empty_like(expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            run(linear, x, y=y)
    for _ in range(1000):
        graph.replay()
    assert torch.equal(y, expected)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(y, run(linear, x))


def test_every_partition_of_the_decode_kernel(run: Runner) -> None:
    for m in (1, 12):
        linear = random_linear(1000, 4096, group_size=64)
        x = torch.randn(m, 4096, device="cuda", dtype=HALF)
        expected = reference(linear, weight_of(linear), x)
        for tiles in (1, 2):
            for warps in (1, 4, 7, 16):
                for splits in (1, 2, 5, 32, 40):
                    for row_warps in (1, *(each for each in (2, 4) if warps % each == 0)):
                        tactic = Tactic.DECODE | tiles << 8 | warps << 12
                        tactic |= splits << 20 | row_warps << 28
                        error = relative_error(run(linear, x, tactic), expected)
                        assert error < TOLERANCE[HALF], (m, hex(tactic), error)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bits": 5}, "bits is 5"),
        ({"group_size": 16}, "group_size is 16"),
        ({"in_features": 500}, "in_features 500 is not a multiple of group_size 128"),
        ({"out_features": 0}, "out_features is 0"),
        ({"dtype": 7}, "dtype is 7"),
        ({"epilogue": 9}, "epilogue is 9"),
        ({"qweight": 8}, "qweight 0x8 is null or not aligned"),
        ({"scales": None}, "scales"),
    ],
)
def test_wrong_arguments_are_refused_with_their_values(
    run: Runner, changed: dict[str, Any], words: str
) -> None:
    parameters = random_linear(96, 512).parameters
    for name, value in changed.items():
        setattr(parameters, name, value)
    x = torch.randn(1, 512, device="cuda", dtype=HALF)
    y = torch.empty(1, 96, device="cuda", dtype=HALF)
    workspace = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    with pytest.raises(KernelError, match=words):
        run.library.call(
            "awq_edge_w4a16_linear",
            parameters,
            x.data_ptr(),
            y.data_ptr(),
            1,
            0,
            workspace.data_ptr(),
            workspace.numel(),
            0,
        )


def test_a_small_workspace_is_refused_with_the_size_that_is_needed(run: Runner) -> None:
    linear = random_linear(96, 512)
    parameters = linear.parameters
    needed = run.library.size("awq_edge_w4a16_workspace", parameters, 40, Tactic.CUBLASLT)
    x = torch.randn(40, 512, device="cuda", dtype=HALF)
    y = torch.empty(40, 96, device="cuda", dtype=HALF)
    workspace = torch.zeros(needed - 1, dtype=torch.uint8, device="cuda")
    with pytest.raises(KernelError, match=f"{needed} bytes"):
        run.library.call(
            "awq_edge_w4a16_linear",
            parameters,
            x.data_ptr(),
            y.data_ptr(),
            40,
            Tactic.CUBLASLT,
            workspace.data_ptr(),
            workspace.numel(),
            0,
        )
