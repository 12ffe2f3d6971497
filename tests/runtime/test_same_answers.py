"""Answers do not depend on how a prompt was cut, on what is in the cache, or on who asked before.

With int8 activations (accuracy level 4): where kernels differ by the number of rows, rounding to 8
bits makes tenths of a log-probability of a difference in the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import awq_edge
from awq_edge.runtime.generation import Request
from awq_edge.runtime.model import Model, load
from awq_edge.runtime.session import Float32

PROMPT = [3 + (7 * n * n + n) % 300 for n in range(101)]


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    recipe = awq_edge.load_recipe("cpu").overridden({"export.prefill_chunk": 32})
    bundle = awq_edge.export(
        tiny_llama,
        tmp_path_factory.mktemp("quantized") / "tiny",
        recipe.asking(method="rtn", group_size=32, accuracy_level=4),
    ).path
    with load(bundle, threads=1) as opened:
        assert opened.manifest.accuracy_level == 4
        yield opened


def logits(model: Model, pieces: list[int]) -> Float32:
    """Behind the prompt, computed in pieces of these sizes."""
    session = model.session
    session.reset()
    for size in pieces:
        begin = session.past_length
        found = session.prefill(PROMPT[begin : begin + size])
    assert session.past_length == len(PROMPT)
    return found.copy()


@pytest.mark.parametrize(
    "pieces",
    [
        [100, 1],
        [99, 2],
        [1, 100],
        [33, 33, 35],
        [17] * 5 + [16],
        [3] * 33 + [2],
        [1] * 101,
    ],
)
def test_the_pieces_of_a_prompt(model: Model, pieces: list[int]) -> None:
    assert np.array_equal(logits(model, pieces), logits(model, [101]))


def test_the_end_of_the_context(model: Model) -> None:
    session = model.session
    prompt = [3 + n % 200 for n in range(session.context)]
    session.reset()
    whole = session.prefill(prompt).copy()
    for last in range(1, 6):
        session.reset()
        session.prefill(prompt[:-last])
        assert np.array_equal(session.prefill(prompt[-last:]), whole)
        assert list(session.cached_ids) == prompt


def test_logits_of_several_positions(model: Model) -> None:
    session = model.session
    session.reset()
    whole = session.logits(PROMPT, range(len(PROMPT))).copy()
    session.reset()
    session.prefill(PROMPT[:51])
    assert np.array_equal(session.logits(PROMPT[51:], range(50)), whole[51:])


def test_who_asked_before(model: Model) -> None:
    request = Request(PROMPT, max_new_tokens=20, top_logprobs=5)

    def answer() -> tuple[object, object]:
        stream = model.stream_request(request, reuse_cache=True)
        text = stream.finish().ids
        return text, stream.logprobs

    model.session.reset()
    expected = answer()
    assert answer() == expected
    for before in ([4, 5, 6], PROMPT[:50], PROMPT[:99], [*PROMPT, 9, 9], [*PROMPT[:70], 1, 2, 3]):
        model.stream_request(Request(before, max_new_tokens=7), reuse_cache=True).finish()
        assert answer() == expected
