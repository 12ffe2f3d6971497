"""Windows and scores against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.perplexity import negative_log_likelihoods, score, windows

from .fakes import VOCAB, PrefixSource

# float32 exponentials are summed in float64: an error of 1e-7 each, relative to their sum.
TOLERANCE = 1e-5


IDS = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=60)


@given(length=st.integers(0, 300), window=st.integers(2, 80), data=st.data())
def test_every_token_is_scored_once_in_order(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    parts = list(windows(length, window, stride))
    scored = [i for part in parts for i in range(part.first_scored, part.end)]
    assert scored == sorted(set(scored))
    missing = set(range(1, length)) - set(scored)
    if stride < window:
        assert missing == set()
    else:  # nothing overlaps: the first token of a window has nothing before it
        assert missing == set(range(window, length, window))
    for part in parts:
        assert part.end - part.begin <= window
        assert part.begin < part.first_scored < part.end <= length
        if part.begin > 0:  # with as much context as the stride promises
            assert part.first_scored - part.begin == max(window - stride, 1)


@settings(max_examples=50, deadline=None)
@given(ids=IDS, window=st.integers(2, 20), blocks=st.integers(1, 30), data=st.data())
def test_score_is_its_definition(
    ids: list[int], window: int, blocks: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    source = PrefixSource(blocks)
    seen: list[tuple[int, int]] = []
    result = score(
        source, ids, window=window, stride=stride, progress=lambda *counts: seen.append(counts)
    )
    nll, tokens, begin, before = 0.0, 0, 0, 0
    while before < len(ids):  # the loop of the published definition
        end = min(begin + window, len(ids))
        for target in range(max(before, begin + 1), end):
            nll += source.negative_log_likelihood(ids[begin:target], ids[target])
            tokens += 1
        before, begin = end, begin + stride
    assert result.tokens == tokens
    assert result.nll == pytest.approx(nll, rel=TOLERANCE)
    assert result.perplexity == pytest.approx(math.exp(nll / tokens), rel=TOLERANCE)
    assert seen[-1] == (tokens, tokens)
    assert all(len(inputs) <= window - 1 for inputs in source.inputs)


def test_a_uniform_model_has_the_vocabularys_perplexity() -> None:
    source = PrefixSource()
    source.row = lambda prefix: np.zeros(VOCAB, np.float32)
    assert score(source, [1] * 30, window=8, stride=4).perplexity == pytest.approx(VOCAB)


@settings(max_examples=50, deadline=None)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 150), st.just(VOCAB)),
        elements=st.floats(-80, 80, width=32),
    ),
    seed=st.integers(0, 1000),
)
def test_negative_log_likelihoods(logits: np.ndarray, seed: int) -> None:
    targets = np.random.default_rng(seed).integers(0, VOCAB, len(logits))
    wide = logits.astype(np.float64)
    sums = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    expected = sums - wide[np.arange(len(logits)), targets]
    found = negative_log_likelihoods(logits, targets)
    assert np.abs(found - expected).max() < TOLERANCE


def test_output_that_is_not_finite_is_an_error() -> None:
    source = PrefixSource()
    source.row = lambda prefix: np.full(VOCAB, np.nan, np.float32)
    with pytest.raises(ModelError, match="not finite"):
        score(source, [1, 2, 3], window=8, stride=4)


@pytest.mark.parametrize(
    ("ids", "window", "stride", "message"),
    [
        ([1], 8, 4, r"the text has 1 token\(s\)"),
        ([1, 2], 1, 1, "--window 1: must be 2 or more"),
        ([1, 2], 8, 0, "--stride 0: must be from 1 to the window of 8"),
        ([1, 2], 8, 9, "--stride 9"),
        ([1, 2], 101, 9, "--window 101 is beyond the context of 100"),
    ],
)
def test_impossible_windows(ids: list[int], window: int, stride: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score(PrefixSource(), ids, window=window, stride=stride)
