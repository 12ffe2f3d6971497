"""Windows and scores against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.perplexity import (
    choose_window,
    negative_log_likelihoods,
    score,
    windows,
)
from awq_edge.runtime.text_tokens import TokenizedText

from .fakes import VOCAB, PrefixSource

# float32 exponentials are summed in float64: an error of 1e-7 each, relative to their sum.
TOLERANCE = 1e-5


PREFIXES = st.sampled_from([(), (0,), (3, 4)])  # no BOS, one, two tokens (as of some chat models)
IDS = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=60)


def plain(ids: list[int]) -> TokenizedText:
    """A text before which the tokenizer puts nothing."""
    return TokenizedText((), tuple(ids))


@given(length=st.integers(0, 300), window=st.integers(3, 80), prefix=PREFIXES, data=st.data())
def test_every_token_is_scored_once_in_order(
    length: int, window: int, prefix: tuple[int, ...], data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    body = window - len(prefix)
    parts = list(windows(TokenizedText(prefix, tuple(range(length))), window, stride))
    scored = [i for part in parts for i in range(part.first_scored, part.end)]
    assert scored == sorted(set(scored))
    missing = set(range(length)) - set(scored)
    if prefix:
        assert missing == set()
    elif stride < window:
        assert missing == ({0} if length else set())
    else:  # nothing overlaps: the first token of a window has nothing before it
        assert missing == set(range(0, length, window))
    for part in parts:
        assert len(prefix) + part.end - part.begin <= window
        assert part.begin <= part.first_scored < part.end <= length
        if part.begin > 0:  # with as much context as the stride promises
            least = 0 if prefix else 1
            assert part.first_scored - part.begin == max(body - stride, least)
        # A model reads the prefix, then the text up to the last token, which is only predicted.
        inputs = part.inputs(range(length))
        assert inputs == [*prefix, *range(part.begin, part.end - 1)]
        assert part.targets(range(length))[0] == part.first_scored
        behind = [*inputs, part.end - 1][part.first_row + 1 :]
        assert behind == list(range(part.first_scored, part.end))


@settings(max_examples=50, deadline=None)
@given(
    ids=IDS, window=st.integers(3, 20), blocks=st.integers(1, 30), prefix=PREFIXES, data=st.data()
)
def test_score_is_its_definition(
    ids: list[int], window: int, blocks: int, prefix: tuple[int, ...], data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    source = PrefixSource(blocks)
    seen: list[tuple[int, int]] = []
    result = score(
        source,
        TokenizedText(prefix, tuple(ids)),
        window=window,
        stride=stride,
        progress=lambda *counts: seen.append(counts),
    )
    nll, tokens, begin, before = 0.0, 0, 0, 0
    body = window - len(prefix)
    while before < len(ids):  # the loop of the published definition, the prefix before each window
        end = min(begin + body, len(ids))
        for target in range(max(before, begin if prefix else begin + 1), end):
            nll += source.negative_log_likelihood([*prefix, *ids[begin:target]], ids[target])
            tokens += 1
        before, begin = end, begin + min(stride, body)
    assert result.tokens == tokens
    assert result.nll == pytest.approx(nll, rel=TOLERANCE)
    assert result.perplexity == pytest.approx(math.exp(nll / tokens), rel=TOLERANCE)
    assert seen[-1] == (tokens, tokens)
    assert all(len(inputs) <= window - 1 for inputs in source.inputs)
    assert all(inputs[: len(prefix)] == prefix for inputs in source.inputs)


def test_a_stride_is_cut_to_the_text_of_a_window() -> None:
    assert choose_window(64, 64, 100, ()) == (64, 64)
    assert choose_window(64, 64, 100, (0,)) == (64, 63)
    assert choose_window(None, None, 100, (0,)) == (100, 50)


@pytest.mark.parametrize(
    ("prefix", "tokens", "scored"), [((), 60 * 1024, 60 * 1023), ((2,), 16 * 1023, 16 * 1023)]
)
def test_windows_side_by_side(prefix: tuple[int, ...], tokens: int, scored: int) -> None:
    """Window and stride of 1024: the model's inputs have 1,023 tokens, BOS among them, and no two
    windows share one of the text; whole windows of BOS and text are multiples of 1,023 tokens."""
    window, stride = choose_window(1024, 1024, 8192, prefix)
    parts = list(windows(TokenizedText(prefix, tuple(range(tokens))), window, stride))
    assert len(parts) == tokens // (1024 - len(prefix))
    assert {len(part.inputs(range(tokens))) for part in parts} == {1023}
    assert sum(part.tokens for part in parts) == scored
    assert [part.begin for part in parts] == [i * (1024 - len(prefix)) for i in range(len(parts))]


def test_a_uniform_model_has_the_vocabularys_perplexity() -> None:
    source = PrefixSource()
    source.row = lambda prefix: np.zeros(VOCAB, np.float32)
    assert score(source, plain([1] * 30), window=8, stride=4).perplexity == pytest.approx(VOCAB)


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


def test_negative_log_likelihoods_of_a_tensor() -> None:
    """On whatever device: the numbers of NumPy."""
    torch = pytest.importorskip("torch", reason="needs the [host] extra")
    random = np.random.default_rng(0)
    logits = random.normal(scale=6, size=(70, 5000)).astype(np.float32)
    targets = random.integers(0, 5000, 70)
    found = negative_log_likelihoods(torch.from_numpy(logits), targets)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, negative_log_likelihoods(logits, targets), rtol=TOLERANCE)


def test_output_that_is_not_finite_is_an_error() -> None:
    source = PrefixSource()
    source.row = lambda prefix: np.full(VOCAB, np.nan, np.float32)
    with pytest.raises(ModelError, match="not finite"):
        score(source, plain([1, 2, 3]), window=8, stride=4)


@pytest.mark.parametrize(
    ("prefix", "ids", "window", "stride", "message"),
    [
        ((), [1], 8, 4, r"the text has 1 token\(s\); scoring needs at least 2"),
        ((0,), [], 8, 4, r"the text has 0 token\(s\); scoring needs at least 1"),
        ((), [1, 2], 1, 1, "--window 1: must be 2 or more"),
        ((0, 1), [1, 2], 2, 1, "--window 2: must be 3 or more"),
        ((), [1, 2], 8, 0, "--stride 0: must be from 1 to the window of 8"),
        ((), [1, 2], 8, 9, "--stride 9"),
        ((), [1, 2], 101, 9, "--window 101 is beyond the context of 100"),
    ],
)
def test_impossible_windows(
    prefix: tuple[int, ...], ids: list[int], window: int, stride: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        score(PrefixSource(), TokenizedText(prefix, tuple(ids)), window=window, stride=stride)
