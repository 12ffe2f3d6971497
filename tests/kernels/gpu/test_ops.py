"""RMSNorm, SiLU, embedding and sampling on a GPU against float64 and the sampling reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import Dtype, Sampling
from awq_edge.kernels.kernels import KernelLibrary
from tests.kernels.sampling_reference import sample as reference_sample

pytestmark = pytest.mark.gpu

DTYPES = ("float16", "bfloat16")
# Half a unit in the last place of the result, and 16 float32 roundings on the way to it.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
FLOAT32_ERROR = 16 * 2.0**-24
# float16 has nothing between its smallest subnormals.
SMALLEST = {"float16": 2.0**-24, "bfloat16": 1e-38}
# What outputs hold before a call: a value that no result has.
POISON = -12288.0
# Sizes of real models, and ones that fit no vector, no warp, and not the registers of a block.
SIZES = (1, 7, 8, 40, 96, 128, 1000, 2560, 4096, 4097, 5120, 8192, 16392, 28672)


class Call:
    """Arguments of the library's calls for one dtype."""

    def __init__(self, library: KernelLibrary, torch: Any, dtype: str) -> None:
        self.library, self.torch, self.name = library, torch, dtype
        self.dtype = getattr(torch, dtype)
        self.code = Dtype[dtype.upper()]

    def random(self, *shape: int, seed: int = 0, scale: float = 1.0) -> Any:
        generator = self.torch.Generator("cuda").manual_seed(seed)
        numbers = self.torch.randn(*shape, generator=generator, device="cuda") * scale
        return numbers.to(self.dtype)

    def poisoned(self, *shape: int) -> Any:
        return self.torch.full(shape, POISON, dtype=self.dtype, device="cuda")

    def run(self, name: str, *arguments: Any) -> None:
        stream = self.torch.cuda.current_stream().cuda_stream
        values = [a.data_ptr() if isinstance(a, self.torch.Tensor) else a for a in arguments]
        self.library.call(name, *values, stream)

    def rms_norm(self, x: Any, residual: Any, weight: Any, y: Any, eps: float = 1e-5) -> None:
        self.run("awq_edge_rms_norm", x, residual, weight, y, *x.shape, eps, self.code)

    def sampler(self, rows: int, vocab: int) -> Callable[..., Any]:
        """A function (logits, step, **sampling) -> ids, on one workspace."""
        torch = self.torch
        size = self.library.size("awq_edge_sample_workspace", rows, vocab)
        # All but the counters holds anything.
        workspace = torch.full((size,), 0xAB, dtype=torch.uint8, device="cuda")
        workspace[:65536] = 0

        def sample(logits: Any, step: int, **settings: Any) -> Any:
            parameters = Sampling(**{"top_p": 1.0, **settings})
            ids = torch.full((rows,), -7, dtype=torch.int64, device="cuda")
            at = torch.tensor([step], dtype=torch.int64, device="cuda")
            self.run(
                *("awq_edge_sample", logits, parameters, at, ids, rows, vocab, self.code),
                *(workspace, size),
            )
            torch.cuda.synchronize()
            assert not workspace[:65536].any()
            return ids

        return sample


@pytest.fixture(params=DTYPES)
def call(request: pytest.FixtureRequest, library: KernelLibrary, torch: Any) -> Call:
    return Call(library, torch, request.param)


def assert_rounded_once(call: Call, actual: Any, exact: Any) -> None:
    """actual: activation dtype. exact: float64."""
    error = (actual.double() - exact).abs()
    allowed = exact.abs() * (ROUNDING[call.name] + FLOAT32_ERROR) + SMALLEST[call.name]
    assert bool((error <= allowed).all()), float((error / allowed).max())


def exact_norm(x: Any, weight: Any, eps: float = 1e-5) -> Any:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3, 130])
def test_rms_norm(call: Call, rows: int, size: int) -> None:
    x, weight = call.random(rows, size), call.random(size, seed=1)
    residual, y = call.random(rows, size, seed=2), call.poisoned(rows, size)
    call.torch.cuda.synchronize()
    call.rms_norm(x, None, weight, y)
    assert_rounded_once(call, y, exact_norm(x, weight))
    # With a residual: it becomes the rounded sum, and the norm is of that.
    added, before = (residual.float() + x.float()).to(call.dtype), x.clone()
    y = call.poisoned(rows, size)
    call.rms_norm(x, residual, weight, y)
    assert call.torch.equal(residual, added) and call.torch.equal(x, before)
    assert_rounded_once(call, y, exact_norm(added, weight))
    # In place, and a row by itself: the same bits.
    call.rms_norm(x, None, weight, x)
    alone = call.poisoned(1, size)
    call.rms_norm(before[-1:].clone(), None, weight, alone)
    assert call.torch.equal(x[-1:], alone)


def test_rms_norm_of_extremes(call: Call) -> None:
    size = 4096
    weight = call.random(size, seed=1)
    for scale in (1e3, 1e-3):
        x, y = call.random(2, size, scale=scale), call.poisoned(2, size)
        call.torch.cuda.synchronize()
        call.rms_norm(x, None, weight, y)
        assert_rounded_once(call, y, exact_norm(x, weight))
    y = call.poisoned(1, size)
    call.rms_norm(call.torch.zeros(1, size, dtype=call.dtype, device="cuda"), None, weight, y)
    assert not y.any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3, 65537])
def test_silu_mul(call: Call, rows: int, size: int) -> None:
    if rows * size > 2**24:
        rows = 2**24 // size
    x, y = call.random(rows, 2 * size, scale=4.0), call.poisoned(rows, size)
    x[0, : size // 2] = -1e3  # exp overflows
    call.run("awq_edge_silu_mul", x, y, rows, size, call.code)
    gate, up = x.double().chunk(2, dim=-1)
    assert_rounded_once(call, y, gate / (1 + (-gate).exp()) * up)


@pytest.mark.parametrize("size", SIZES)
def test_embedding_and_gather_rows(call: Call, size: int) -> None:
    torch, vocab = call.torch, 300
    table = call.random(vocab, size)
    ids = torch.tensor([5, 0, 299, 5, -1, 300, 2**40], dtype=torch.int64, device="cuda")
    y = call.poisoned(len(ids), size)
    call.run("awq_edge_embedding", ids, table, y, len(ids), size, vocab, call.code)
    # Ids outside of the vocabulary read row 0.
    assert torch.equal(y, table[[5, 0, 299, 5, 0, 0, 0]])
    rows = torch.tensor([299, 7, 7], dtype=torch.int64, device="cuda")
    picked = call.poisoned(3, size)
    call.run("awq_edge_gather_rows", table, rows, picked, 3, size, call.code)
    assert torch.equal(picked, table[rows])


def test_embedding_of_more_rows_than_a_grid_holds(call: Call) -> None:
    table, rows = call.random(50, 8), 70_000
    ids = call.torch.arange(rows, device="cuda") % 50
    y = call.poisoned(rows, 8)
    call.run("awq_edge_embedding", ids, table, y, rows, 8, 50, call.code)
    assert call.torch.equal(y, table[ids])


def test_advance(library: KernelLibrary, torch: Any) -> None:
    lengths = torch.arange(100, dtype=torch.int64, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    library.call("awq_edge_advance", lengths.data_ptr(), 99, 2**35, stream)
    expected = torch.arange(100, device="cuda") + 2**35
    expected[99] = 99
    assert torch.equal(lengths, expected)


@pytest.mark.parametrize("vocab", [1, 5, 8, 1000, 32000, 128256, 151669, 262144])
def test_greedy_is_the_first_largest(call: Call, vocab: int) -> None:
    rows = 3
    sample = call.sampler(rows, vocab)
    logits = call.random(rows, vocab, scale=3.0)
    for trial in range(4):
        ids = sample(logits, 0)
        values = logits.float().cpu().numpy()
        assert ids.tolist() == values.argmax(-1).tolist()  # numpy's argmax is the first
        # Then with equal ones at the end and in the middle.
        logits[:, [vocab - 1, vocab // 2]] = 30.0 + trial


def test_greedy_of_special_values(call: Call) -> None:
    vocab, inf, nan = 40, float("inf"), float("nan")
    logits = call.torch.full((4, vocab), -inf, dtype=call.dtype, device="cuda")
    logits[0, 7], logits[1, [3, 9]], logits[2, 11] = nan, inf, -1.0
    logits[3] = nan
    assert call.sampler(4, vocab)(logits, 0).tolist() == [0, 3, 11, 0]


SETTINGS = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    {"temperature": 5.0, "top_k": 1024},
    {"temperature": 1e-3},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-6},
)


@pytest.mark.parametrize("vocab", [1, 7, 1000, 32003, 128256, 262144])
def test_draws_are_the_reference_s(call: Call, vocab: int) -> None:
    rows, seed = 2, 0xDEADBEEF12345678
    sample = call.sampler(rows, vocab)
    logits = call.random(rows, vocab, scale=2.5)
    logits[0, vocab // 2] = float("nan")
    logits[1, :: max(1, vocab // 5)] = float("-inf")
    values = logits.float().cpu().numpy()
    for step, settings in enumerate(SETTINGS):
        at = step * 2**33 + step
        ids = sample(logits, at, seed=seed, **settings).tolist()
        expected = [
            reference_sample(values[row], seed=seed, step=at, row=row, **settings).token
            for row in range(rows)
        ]
        assert ids == expected, settings


def test_draws_of_equal_logits_reach_every_token(call: Call) -> None:
    """All in one key: the rank among equal ones decides."""
    vocab = 64
    logits = call.torch.full((512, vocab), 1.5, dtype=call.dtype, device="cuda")
    ids = call.sampler(512, vocab)(logits, 3, temperature=1.0, seed=5)
    assert set(ids.tolist()) == set(range(vocab))
    few = call.sampler(512, vocab)(logits, 3, temperature=1.0, top_k=3, seed=5)
    assert set(few.tolist()) == {0, 1, 2}


def test_bits_are_the_same_every_time_and_under_graph_replay(call: Call) -> None:
    torch, vocab, size = call.torch, 128256, 4096
    x, weight = call.random(4, size), call.random(size, seed=1)
    logits, outputs = call.random(1, vocab, scale=2.0), []
    bytes_needed = call.library.size("awq_edge_sample_workspace", 1, vocab)
    workspace = torch.zeros(bytes_needed, dtype=torch.uint8, device="cuda")
    step = torch.zeros(1, dtype=torch.int64, device="cuda")
    ids = torch.zeros(1, dtype=torch.int64, device="cuda")
    residual, y = x.clone(), call.poisoned(4, size)
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=0, seed=11)

    def one_step() -> None:
        call.rms_norm(x, residual, weight, y)
        call.run(
            *("awq_edge_sample", logits, sampling, step, ids, 1, vocab, call.code),
            *(workspace, bytes_needed),
        )
        call.run("awq_edge_advance", step, 1, 1)

    def tokens(steps: int, advance: Callable[[], None]) -> list[Any]:
        step.zero_()
        residual.copy_(x)
        torch.cuda.synchronize()
        found = []
        for _ in range(steps):
            advance()
            torch.cuda.synchronize()
            found.append((int(ids), y.clone()))
        return found

    eager = tokens(20, one_step)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        one_step()
    outputs = tokens(20, graph.replay)
    assert [i for i, _ in eager] == [i for i, _ in outputs]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(eager, outputs, strict=True))
    values = logits.float().cpu().numpy()[0]
    expected = [
        reference_sample(values, temperature=1.0, top_p=0.9, seed=11, step=s).token
        for s in range(3)
    ]
    assert [i for i, _ in eager[:3]] == expected
    assert len({i for i, _ in eager}) > 1


def test_refusals_launch_nothing(call: Call) -> None:
    x, weight, y = call.random(2, 64), call.random(64), call.poisoned(2, 64)
    with pytest.raises(KernelError, match="size is 0; it must be 1 or more"):
        call.run("awq_edge_rms_norm", x, None, weight, y, 2, 0, 1e-5, call.code)
    with pytest.raises(KernelError, match="aligned to 16 bytes"):
        call.run("awq_edge_silu_mul", x.data_ptr() + 2, y, 1, 32, call.code)
    call.torch.cuda.synchronize()
    assert bool((y == POISON).all())
