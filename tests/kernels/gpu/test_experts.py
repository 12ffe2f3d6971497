"""Routed experts on a GPU, against float64 products of the numbers the codes stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import Epilogue
from awq_edge.kernels.kernels import KernelLibrary, load_kernels

torch = pytest.importorskip("torch", reason="needs torch")

from .experts_cases import ExpertsCall, expected, inputs, random_experts  # noqa: E402
from .w4a16_cases import random_linear, relative_error  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

HALF, BRAIN = torch.float16, torch.bfloat16
# The product of gate and up, down's output and the sum are rounded to the dtype.
TOLERANCE = {HALF: 1.5e-3, BRAIN: 1.2e-2}
ALL_M = (1, 2, 8, 9, 16, 17, 64, 130, 700)


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return load_kernels()


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize(("count", "top_k", "normalize"), [(8, 2, True), (24, 4, False)])
def test_agrees_with_float64(
    library: KernelLibrary,
    bits: int,
    group_size: int,
    dtype: Any,
    count: int,
    top_k: int,
    normalize: bool,
) -> None:
    experts = random_experts(
        *(count, 256, 384),
        top_k=top_k,
        normalize=normalize,
        bits=bits,
        group_size=group_size,
        dtype=dtype,
        symmetric=bits == 8,
        bias=bits == 3,
    )
    call = ExpertsCall(library, experts, max(ALL_M))
    for m in ALL_M:
        logits, x = inputs(m, 256, count, dtype, seed=m)
        error = relative_error(call(logits, x), expected(experts, logits, x))
        assert error < TOLERANCE[dtype], (m, error)


@pytest.mark.parametrize(
    ("count", "size", "intermediate", "top_k"),
    [(8, 4096, 14336, 2), (128, 2048, 768, 8), (512, 512, 128, 10), (1, 128, 32, 1)],
    ids=["Mixtral-8x7B", "Qwen3-30B-A3B", "many", "one"],
)
def test_shapes_of_models(
    library: KernelLibrary, count: int, size: int, intermediate: int, top_k: int
) -> None:
    group_size = min(128, intermediate)
    experts = random_experts(count, size, intermediate, top_k=top_k, group_size=group_size)
    call = ExpertsCall(library, experts, 200)
    for m in (1, 5, 16, 200):
        logits, x = inputs(m, size, count, HALF)
        error = relative_error(call(logits, x), expected(experts, logits, x))
        assert error < TOLERANCE[HALF], (m, error)


@pytest.mark.parametrize("epilogue", [Epilogue.GELU_MUL, Epilogue.GELU_TANH_MUL])
def test_other_activations(library: KernelLibrary, epilogue: Epilogue) -> None:
    experts = random_experts(8, 256, 128, top_k=2, epilogue=epilogue)
    call = ExpertsCall(library, experts, 100)
    for m in (3, 100):
        logits, x = inputs(m, 256, 8, HALF)
        assert relative_error(call(logits, x), expected(experts, logits, x)) < TOLERANCE[HALF]


@pytest.mark.parametrize("m", [1, 16, 17, 300])
def test_all_tokens_to_the_same_experts_and_equal_logits(library: KernelLibrary, m: int) -> None:
    """As uneven as can be; of equal logits, the smaller experts are chosen."""
    experts = random_experts(8, 128, 128, top_k=3)
    call = ExpertsCall(library, experts, m)
    _, x = inputs(m, 128, 8, HALF)
    for logits in (torch.zeros(m, 8), torch.arange(8.0).expand(m, 8)):
        logits = logits.to(device="cuda", dtype=HALF)
        assert relative_error(call(logits, x), expected(experts, logits, x)) < TOLERANCE[HALF]


@pytest.mark.parametrize("m", [1, 7, 16, 33, 200])
def test_bits_repeat_and_follow_a_graph(library: KernelLibrary, m: int) -> None:
    experts = random_experts(60, 256, 128, top_k=4)
    call = ExpertsCall(library, experts, m)
    logits, x = inputs(m, 256, 60, HALF)
    first = call(logits, x)
    assert all(torch.equal(call(logits, x), first) for _ in range(10))
    graph, now = torch.cuda.CUDAGraph(), (logits.clone(), x.clone())
    with torch.cuda.graph(graph):
        y = call(*now)
    for seed in range(4):  # other tokens, other experts: chosen on the device
        for tensor, values in zip(now, inputs(m, 256, 60, HALF, seed), strict=True):
            tensor.copy_(values)
        graph.replay()
        assert torch.equal(y, call(*now))


def test_refusals(library: KernelLibrary) -> None:
    experts = random_experts(4, 128, 128, top_k=2)
    logits, x = inputs(2, 128, 4, HALF)
    for change, words in [
        ({"top_k": 5}, "top_k is 5; it must be 1 to 4"),
        ({"gate_up": experts.down}, "the first must be of a pair"),
        ({"down": experts.gate_up}, "the second not"),
        ({"down": (random_linear(128, 64, group_size=64),) * 4}, r"down \[128, 64\]"),
    ]:
        with pytest.raises(KernelError, match=words):
            ExpertsCall(library, replace(experts, **change), 2)(logits, x)
    call = ExpertsCall(library, experts, 1)
    with pytest.raises(KernelError, match=r"m 700 needs a workspace of \d+ bytes"):
        call(*inputs(700, 128, 4, HALF))
