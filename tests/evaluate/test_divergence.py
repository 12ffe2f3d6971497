"""Divergence against its definition, and of models that are near, equal and not comparable."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.arrays import Float32
from awq_edge.evaluate.divergence import compare, divergence
from awq_edge.evaluate.divergence_report import standard_error
from awq_edge.evaluate.perplexity import score
from awq_edge.runtime.text_tokens import TokenizedText

from .fakes import VOCAB, PrefixSource

SHORT = TokenizedText((), (1, 2, 3))

# float64 sums of float32 logits, in another order than the expected value's.
TOLERANCE = 1e-9
# Rounding of log-probabilities of some ten nats in float64, whatever is left of their difference.
ROUNDING = 1e-14
# A probability is given as its logarithm in float32.
AS_LOGITS = 1e-6

LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.just(VOCAB)),
    elements=st.floats(-60, 60, width=32),
)


def as_logits(*probabilities: float) -> Float32:
    return np.log(np.array([probabilities], dtype=np.float64)).astype(np.float32)


def definition(logits: Sequence[float], reference: Sequence[float]) -> float:
    """KL of two rows, term by term, with the sums of math.fsum."""

    def log_probabilities(row: Sequence[float]) -> list[float]:
        top = max(row)
        total = math.log(math.fsum(math.exp(x - top) for x in row))
        return [x - top - total for x in row]

    p, q = log_probabilities(reference), log_probabilities(logits)
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def kl(target: Float32, reference: Float32) -> float:
    return float(compare(target, reference, np.zeros(1, np.int64)).kl[0])


def test_kl_of_known_distributions() -> None:
    flat, sharp = as_logits(0.5, 0.5), as_logits(0.9, 0.1)
    # The reference's probabilities weigh: the other way round it is another number.
    assert kl(flat, sharp) == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), abs=AS_LOGITS
    )
    assert kl(sharp, flat) == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), abs=AS_LOGITS
    )
    assert kl(flat, sharp) < kl(sharp, flat) - 0.1


def test_the_kl_of_one_sure_token_is_the_targets_surprise() -> None:
    sure = np.array([[0.0, -1e4, -1e4]], np.float32)
    assert kl(as_logits(0.25, 0.25, 0.5), sure) == pytest.approx(math.log(4), abs=AS_LOGITS)


@settings(max_examples=60, deadline=None)
@given(logits=LOGITS, seed=st.integers(0, 1000), offset=st.floats(-40, 40, width=32))
def test_equal_models_do_not_diverge(logits: np.ndarray, seed: int, offset: float) -> None:
    tokens = np.random.default_rng(seed).integers(0, VOCAB, len(logits))
    same = compare(logits, logits.copy(), tokens)
    assert (same.kl == 0).all() and (same.same_top1 == 1).all() and (same.shared_top5 == 1).all()
    assert (same.nll == same.reference_nll).all()
    # Logits mean the same with any constant added to them.
    whole = np.round(logits)
    moved = compare(whole + np.float32(round(offset)), whole, tokens)
    assert (moved.kl < TOLERANCE).all() and (moved.same_top1 == 1).all()


@settings(max_examples=60, deadline=None)
@given(target=LOGITS, seed=st.integers(0, 1000))
def test_compare_is_its_definition(target: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    reference = random.normal(scale=8, size=target.shape).astype(np.float32)
    tokens = random.integers(0, VOCAB, len(target))
    found = compare(target, reference, tokens)
    for row in range(len(target)):
        mine, theirs = target[row].tolist(), reference[row].tolist()
        expected = definition(mine, theirs)
        assert found.kl[row] == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
        assert found.kl[row] >= 0
        assert found.same_top1[row] == float(np.argmax(mine) == np.argmax(theirs))
        total = math.log(math.fsum(math.exp(x - max(mine)) for x in mine)) + max(mine)
        assert found.nll[row] == pytest.approx(total - mine[tokens[row]], abs=TOLERANCE)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 10.0])
def test_tensors_give_the_numbers_of_numpy(scale: float) -> None:
    """scale: of the difference of the two models' logits."""
    torch = pytest.importorskip("torch", reason="needs the [host] extra")
    random = np.random.default_rng(0)
    reference = random.normal(scale=4, size=(30, 5000)).astype(np.float32)
    target = reference + random.normal(scale=scale, size=reference.shape).astype(np.float32)
    target[:, -3:] = reference[:, -3:] = -np.inf  # padding of the vocabulary
    tokens = random.integers(0, 4000, len(target))
    expected = compare(target, reference, tokens)
    found = compare(torch.from_numpy(target), torch.from_numpy(reference), tokens)
    for name in vars(expected):
        values = getattr(found, name)
        assert values.dtype == np.float64
        np.testing.assert_allclose(
            values, getattr(expected, name), rtol=TOLERANCE, atol=ROUNDING, err_msg=name
        )


@pytest.mark.parametrize("sides", [("target",), ("reference",), ("target", "reference")])
def test_sources_that_give_tensors(sides: tuple[str, ...]) -> None:
    """Beside one of NumPy, as a bundle's is, or both."""
    torch = pytest.importorskip("torch", reason="needs the [host] extra")
    text = TokenizedText((), tuple(range(10)) * 4)
    sources = {"target": PrefixSource(7, seed=1), "reference": PrefixSource(5, seed=2)}
    expected = divergence(sources["target"], sources["reference"], text, window=20, stride=10)
    for side in sides:
        logits = sources[side].logits
        sources[side].logits = lambda *a, logits=logits: map(torch.from_numpy, logits(*a))  # type: ignore[misc]
    found = divergence(sources["target"], sources["reference"], text, window=20, stride=10)
    for name in vars(expected):
        values = getattr(expected, name)
        np.testing.assert_allclose(getattr(found, name), values, rtol=TOLERANCE, err_msg=name)


def test_top5_overlap_counts_shared_tokens() -> None:
    reference = -np.arange(VOCAB, dtype=np.float32)[None]  # likeliest first: 0 1 2 3 4
    target = reference.copy()
    target[0, [1, 2, 7, 8]] = -50.0, -50.0, 5.0, 4.0  # 7 8 0 3 4
    found = compare(target, reference, np.zeros(1, np.int64))
    assert found.shared_top5[0] == pytest.approx(3 / 5)
    assert found.same_top1[0] == 0


def test_a_vocabulary_of_fewer_than_five() -> None:
    assert compare(as_logits(0.3, 0.7), as_logits(0.6, 0.4), np.zeros(1, int)).shared_top5[0] == 1


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=60),
    window=st.integers(2, 20),
    blocks=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    data=st.data(),
)
def test_divergence_scores_what_perplexity_scores(
    ids: list[int], window: int, blocks: tuple[int, int], data: st.DataObject
) -> None:
    stride, text = data.draw(st.integers(1, window)), TokenizedText((), tuple(ids))
    target, reference = PrefixSource(blocks[0], seed=1), PrefixSource(blocks[1], seed=2)
    seen: list[tuple[int, int]] = []
    found = divergence(
        target,
        reference,
        text,
        window=window,
        stride=stride,
        progress=lambda *counts: seen.append(counts),
    )
    expected, begin, before = [], 0, 0
    while before < len(ids):  # the loop of the published definition of the windows
        end = min(begin + window, len(ids))
        for place in range(max(before, begin + 1), end):
            prefix = ids[begin:place]
            expected.append(definition(target.row(prefix).tolist(), reference.row(prefix).tolist()))
        before, begin = end, begin + stride
    assert found.kl == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    for source, perplexity in (
        (target, found.perplexity),
        (reference, found.reference_perplexity),
    ):
        alone = score(source, text, window=window, stride=stride)
        assert perplexity == pytest.approx(alone.perplexity, rel=AS_LOGITS)
        assert len(found.nll) == alone.tokens
    assert seen[-1] == (len(expected), len(expected))


def test_logits_are_not_kept() -> None:
    """Of 2,000 tokens and 5,000 words only a few rows are in memory at a time."""
    size = 5000
    rows = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    sources = [PrefixSource(32, vocab_size=size), PrefixSource(32, vocab_size=size)]
    for source, row in zip(sources, rows, strict=True):
        source.row = lambda prefix, row=row: row  # type: ignore[misc]
    tracemalloc.start()
    try:
        divergence(*sources, TokenizedText((), (1,) * 2000), window=100, stride=100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2000 * size * 4 / 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("broken", ["target", "reference"])
def test_output_that_is_not_finite_is_named(broken: str, value: float) -> None:
    sources = {"target": PrefixSource(seed=1), "reference": PrefixSource(seed=2)}
    row = sources[broken].row
    bad = np.full(VOCAB, 0, np.float32)
    bad[3] = value
    sources[broken].row = lambda prefix: bad if len(prefix) == 5 else row(prefix)
    with pytest.raises(ModelError, match=f"the {broken}'s output is not finite at token 5"):
        text = TokenizedText((), (1,) * 9)
        divergence(sources["target"], sources["reference"], text, window=20, stride=10)


def test_tokens_that_no_model_can_give() -> None:
    """A vocabulary padded with -inf in both counts nothing; in the target alone it is an error."""
    padded = np.array([[1.0, 2.0, -np.inf]], np.float32)
    whole = np.array([[2.0, 1.0, -np.inf]], np.float32)
    expected = definition([2.0, 1.0], [1.0, 2.0])
    assert kl(whole, padded) == pytest.approx(expected, rel=TOLERANCE)
    with pytest.raises(ModelError, match="target's output is not finite at token 0"):
        kl(padded, np.array([[1.0, 2.0, 0.0]], np.float32))


def test_models_of_different_vocabularies() -> None:
    with pytest.raises(ConfigError, match="model-1 and the reference model-2 have vocabularies"):
        divergence(
            PrefixSource(seed=1, vocab_size=VOCAB + 1),
            PrefixSource(seed=2),
            SHORT,
            window=8,
            stride=4,
        )
    other = PrefixSource(seed=2)
    other.tokens = {**other.tokens, "3": 4, "4": 3}
    with pytest.raises(ConfigError, match="'3' is token 3 and 4"):
        divergence(PrefixSource(seed=1), other, SHORT, window=8, stride=4)
    other.tokens = {text: i for text, i in PrefixSource().tokens.items() if text != "7"}
    with pytest.raises(ConfigError, match="'7' is token 7 and none"):
        divergence(PrefixSource(seed=1), other, SHORT, window=8, stride=4)


def test_a_window_beyond_the_shorter_context() -> None:
    short = PrefixSource(seed=2)
    short.context = 6
    with pytest.raises(ConfigError, match="--window 8 is beyond the context of 6"):
        divergence(PrefixSource(seed=1), short, SHORT, window=8, stride=4)


def test_standard_error() -> None:
    assert standard_error(np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx(
        math.sqrt((4 + 1 + 0 + 9) / 3 / 4)
    )
    assert standard_error(np.array([1.0])) is None
