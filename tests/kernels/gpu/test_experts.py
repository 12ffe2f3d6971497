"""Routed experts on a GPU, against float64 products of the numbers the codes stand for."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import pytest

from awq_edge.errors import KernelError
from awq_edge.kernels.interface import COUNTER_BYTES, Epilogue, Routing, W4A16Weight
from awq_edge.kernels.kernels import KernelLibrary, load_kernels

torch = pytest.importorskip("torch", reason="needs torch")

from .w4a16_cases import Linear, random_linear, reference, relative_error, weight_of  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

HALF, BRAIN = torch.float16, torch.bfloat16
# The product of gate and up, down's output and the sum are rounded to the dtype.
TOLERANCE = {HALF: 1.5e-3, BRAIN: 1.2e-2}
ALL_M = (1, 2, 8, 9, 16, 17, 64, 130, 700)


@dataclass(frozen=True)
class Experts:
    """Weights of all experts, and behind each other, as the kernels read them."""

    gate_up: tuple[Linear, ...]
    down: tuple[Linear, ...]
    top_k: int
    normalize: bool

    @functools.cached_property
    def weights(self) -> list[tuple[Any, Any]]:
        """The numbers of gate_up and down of each expert, float64."""
        return [
            (weight_of(gate_up), weight_of(down))
            for gate_up, down in zip(self.gate_up, self.down, strict=True)
        ]

    def parameters(self, name: str) -> tuple[W4A16Weight, Any]:
        """The weight of expert 0, and the tensors that its pointers lead to."""
        each: tuple[Linear, ...] = getattr(self, name)
        fields = ("qweight", "scales", "zeros", "bias")
        stacked = {
            field: torch.stack([getattr(linear, field) for linear in each])
            for field in fields
            if getattr(each[0], field) is not None
        }
        return replace(each[0], **stacked).parameters, stacked


def random_experts(
    count: int,
    size: int,
    intermediate: int,
    *,
    top_k: int,
    normalize: bool = True,
    epilogue: Epilogue = Epilogue.SILU_MUL,
    **options: Any,
) -> Experts:
    """options: of random_linear."""
    return Experts(
        gate_up=tuple(
            random_linear(2 * intermediate, size, epilogue=epilogue, seed=2 * i, **options)
            for i in range(count)
        ),
        down=tuple(
            random_linear(size, intermediate, seed=2 * i + 1, **options) for i in range(count)
        ),
        top_k=top_k,
        normalize=normalize,
    )


def expected(experts: Experts, logits: Any, x: Any) -> Any:
    """float64 [m, size]."""
    chosen = torch.sort(logits.double(), dim=1, descending=True, stable=True).indices
    chosen = chosen[:, : experts.top_k]
    shares = logits.double().softmax(dim=1).gather(1, chosen)
    if experts.normalize:
        shares = shares / shares.sum(dim=1, keepdim=True)
    y = torch.zeros(x.shape, dtype=torch.float64, device="cuda")
    for number in chosen.unique().tolist():
        row, slot = torch.where(chosen == number)
        weight_in, weight_out = experts.weights[number]
        hidden = reference(experts.gate_up[number], weight_in, x[row])
        output = reference(experts.down[number], weight_out, hidden)
        y.index_add_(0, row, shares[row, slot, None] * output)
    return y


class Call:
    """awq_edge_experts with a workspace of its own, poisoned but for the counters."""

    def __init__(self, library: KernelLibrary, experts: Experts, max_m: int) -> None:
        self._library = library
        self._gate_up, self._kept = experts.parameters("gate_up")
        self._down, self._kept_too = experts.parameters("down")
        self._routing = Routing(
            num_experts=len(experts.down),
            top_k=experts.top_k,
            normalize=int(experts.normalize),
        )
        given = (self._gate_up, self._down, self._routing, max_m)
        size = library.size("awq_edge_experts_workspace", *given)
        self.workspace = torch.full((size,), 255, dtype=torch.uint8, device="cuda")
        self.workspace[:COUNTER_BYTES] = 0

    def __call__(self, logits: Any, x: Any) -> Any:
        y = torch.full_like(x, torch.nan)
        self._library.call(
            *("awq_edge_experts", self._gate_up, self._down, self._routing),
            *(logits.data_ptr(), x.data_ptr(), y.data_ptr(), len(x)),
            *(self.workspace.data_ptr(), self.workspace.numel()),
            torch.cuda.current_stream().cuda_stream,
        )
        if not torch.cuda.is_current_stream_capturing():
            assert not self.workspace[:COUNTER_BYTES].any()
        return y


def inputs(m: int, size: int, count: int, dtype: Any, seed: int = 0) -> tuple[Any, Any]:
    random = torch.Generator("cuda").manual_seed(seed)
    logits = torch.randn(m, count, generator=random, device="cuda").to(dtype)
    return logits, torch.randn(m, size, generator=random, device="cuda").to(dtype)


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
    call = Call(library, experts, max(ALL_M))
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
    call = Call(library, experts, 200)
    for m in (1, 5, 16, 200):
        logits, x = inputs(m, size, count, HALF)
        error = relative_error(call(logits, x), expected(experts, logits, x))
        assert error < TOLERANCE[HALF], (m, error)


@pytest.mark.parametrize("epilogue", [Epilogue.GELU_MUL, Epilogue.GELU_TANH_MUL])
def test_other_activations(library: KernelLibrary, epilogue: Epilogue) -> None:
    experts = random_experts(8, 256, 128, top_k=2, epilogue=epilogue)
    call = Call(library, experts, 100)
    for m in (3, 100):
        logits, x = inputs(m, 256, 8, HALF)
        assert relative_error(call(logits, x), expected(experts, logits, x)) < TOLERANCE[HALF]


@pytest.mark.parametrize("m", [1, 16, 17, 300])
def test_all_tokens_to_the_same_experts_and_equal_logits(library: KernelLibrary, m: int) -> None:
    """As uneven as can be; of equal logits, the smaller experts are chosen."""
    experts = random_experts(8, 128, 128, top_k=3)
    call = Call(library, experts, m)
    _, x = inputs(m, 128, 8, HALF)
    for logits in (torch.zeros(m, 8), torch.arange(8.0).expand(m, 8)):
        logits = logits.to(device="cuda", dtype=HALF)
        assert relative_error(call(logits, x), expected(experts, logits, x)) < TOLERANCE[HALF]


@pytest.mark.parametrize("m", [1, 7, 16, 33, 200])
def test_bits_repeat_and_follow_a_graph(library: KernelLibrary, m: int) -> None:
    experts = random_experts(60, 256, 128, top_k=4)
    call = Call(library, experts, m)
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
            Call(library, replace(experts, **change), 2)(logits, x)
    call = Call(library, experts, 1)
    with pytest.raises(KernelError, match=r"m 700 needs a workspace of \d+ bytes"):
        call(*inputs(700, 128, 4, HALF))
