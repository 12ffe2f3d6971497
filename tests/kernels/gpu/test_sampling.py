"""Sampling on a GPU: the tokens of the sampling reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from awq_edge.kernels.interface import Sampling
from tests.kernels.sampling_reference import sample as reference_sample

from .op_cases import Call

pytestmark = pytest.mark.gpu


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
        call.normalize(x, residual=residual, weight=weight, y=y)
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
