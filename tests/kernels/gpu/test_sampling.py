"""Sampling on a GPU: the tokens of the sampling reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from awq_edge.kernels.interface import MAX_TOP, Sampler
from tests.kernels.sampling_reference import Adjustments
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
        assert call.torch.equal(sample(logits, 0, greedy=True), ids)
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
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 1.0},
    {"temperature": 0.9, "min_p": 0.02, "top_p": 0.95, "top_k": 100},
    {"temperature": 2.0, "min_p": 1e-3, "top_p": 0.5},
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
        each = [{"seed": seed, "sequence": row, **settings} for row in range(rows)]
        ids = sample(logits, at, *each).tolist()
        expected = [
            reference_sample(values[row], step=at, **each[row]).token for row in range(rows)
        ]
        assert ids == expected, settings


def test_draws_of_equal_logits_reach_every_token(call: Call) -> None:
    """All in one key: the rank among equal ones decides."""
    vocab = 64
    logits = call.torch.full((512, vocab), 1.5, dtype=call.dtype, device="cuda")
    each = [{"temperature": 1.0, "seed": 5, "sequence": row} for row in range(512)]
    ids = call.sampler(512, vocab)(logits, 3, *each)
    assert set(ids.tolist()) == set(range(vocab))
    few = call.sampler(512, vocab)(logits, 3, *({**one, "top_k": 3} for one in each))
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
    sampling = call.sampling({"temperature": 1.0, "top_p": 0.9, "seed": 11})
    sampler = Sampler(
        dtype=call.code,
        rows=1,
        vocab=vocab,
        logits=logits.data_ptr(),
        sampling=sampling.data_ptr(),
        step=step.data_ptr(),
        ids=ids.data_ptr(),
    )

    def one_step() -> None:
        call.normalize(x, residual=residual, weight=weight, y=y)
        call.run("awq_edge_sample", sampler, workspace, bytes_needed)
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


@pytest.mark.parametrize("vocab", [7, 1000, 32003, 151936])
def test_rows_have_their_own_parameters_penalties_bias_and_mask(call: Call, vocab: int) -> None:
    torch, rows, seed = call.torch, 5, 1234567890123
    random = torch.Generator().manual_seed(vocab)
    logits = call.random(rows, vocab, scale=3.0)
    counts = torch.randint(0, 6, (rows, vocab), generator=random, dtype=torch.int32)
    counts *= torch.rand(rows, vocab, generator=random) < 0.3
    bias = torch.randn(rows, vocab, generator=random)
    bits = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32)), generator=random)
    allowed = np.unpackbits(bits.to(torch.int32).numpy().view(np.uint8), axis=1, bitorder="little")[
        :, :vocab
    ].astype(bool)
    each = [
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.1},
        {"temperature": 0.7, "top_k": 30, "repetition_penalty": 1.1},
        {"temperature": 1.2, "top_p": 0.9, "min_p": 0.01, "frequency_penalty": -0.3},
        {"temperature": 0.0},
    ]
    values = logits.float().cpu().numpy()
    sample, names = call.sampler(rows, vocab), ("counts", "bias", "mask")
    on_device = {
        "counts": counts.cuda(),
        "bias": bias.cuda(),
        "mask": bits.to(torch.int32).cuda(),
    }
    for step, used in enumerate([names, names[:1], names[1:2], names[2:], names]):
        own = [{"seed": seed, "sequence": 3 * row, **one} for row, one in enumerate(each)]
        before = on_device["counts"].cpu().numpy()
        given = {name: on_device[name] for name in used}
        ids = sample(logits, step, *own, **given).tolist()
        penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        for row, one in enumerate(own):
            by = Adjustments(
                before[row] if "counts" in used else None,
                bias[row].numpy() if "bias" in used else None,
                allowed[row] if "mask" in used else None,
                **{name: one[name] for name in penalties if name in one},
            )
            rest = {name: value for name, value in one.items() if name not in penalties}
            expected = reference_sample(values[row], step=step, adjustments=by, **rest)
            assert ids[row] == expected.token, (row, used)
        # The drawn tokens count as drawn once more.
        if "counts" in used:
            for row, token in enumerate(ids):
                before[row, token] += 2
        assert np.array_equal(on_device["counts"].cpu().numpy(), before)


def test_a_prompt_is_counted_once(call: Call) -> None:
    torch, vocab = call.torch, 1000
    ids = torch.tensor([5, 7, 5, 999, -1, 1000, 5], dtype=torch.int64, device="cuda")
    counts = torch.zeros(vocab, dtype=torch.int32, device="cuda")
    counts[7] = 4
    call.run("awq_edge_count_tokens", ids, counts, len(ids), vocab)
    expected = torch.zeros(vocab, dtype=torch.int32, device="cuda")
    expected[[5, 7, 999]] = torch.tensor([1, 5, 1], dtype=torch.int32, device="cuda")
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("vocab", [1, 30, 1000, 32003, 151936, 262144])
def test_log_probabilities(call: Call, vocab: int) -> None:
    torch, rows = call.torch, 3
    logits = call.random(rows, vocab, scale=4.0)
    logits[:, vocab // 2 :: max(1, vocab // 3)] = 9.0  # equal ones, some of them in one block
    logits[1, : vocab // 4] = float("-inf")
    size = call.library.size("awq_edge_log_probabilities_workspace", rows)
    workspace = torch.full((size,), 0xAB, dtype=torch.uint8, device="cuda")
    workspace[:65536] = 0
    exact = logits.double().log_softmax(dim=1)
    order = torch.sort(logits.double(), dim=1, descending=True, stable=True).indices
    ids = torch.tensor([0, vocab - 1, vocab // 2], dtype=torch.int64, device="cuda")
    for top in {0, 1, min(5, vocab), min(MAX_TOP, vocab)}:
        chosen = torch.full((rows,), torch.nan, device="cuda")
        top_ids = torch.full((rows, max(top, 1)), -1, dtype=torch.int64, device="cuda")
        top_values = torch.full((rows, max(top, 1)), torch.nan, device="cuda")
        call.run(
            *("awq_edge_log_probabilities", logits, ids, chosen, top_ids, top_values),
            *(rows, vocab, top, call.code, workspace, size),
        )
        torch.cuda.synchronize()
        assert not workspace[:65536].any()
        wanted = exact.gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(chosen.double(), wanted, rtol=1e-5, atol=1e-5)
        if top:
            assert torch.equal(top_ids, order[:, :top])
            wanted = exact.gather(1, top_ids)
            torch.testing.assert_close(top_values.double(), wanted, rtol=1e-5, atol=1e-5)
