"""Sampling: greedy, filters against plain definitions, determinism, the drawn distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from awq_edge.errors import ArtifactError, ConfigError
from awq_edge.runtime.sampling import Sampler, Sampling

# A chi-squared statistic beyond this has a probability below 1e-6 with 7 degrees of freedom.
CHI_SQUARED_LIMIT = 40.5
DRAWS = 20_000

# Quarters, so that equal and nearly equal logits both occur.
LOGITS = hnp.arrays(
    np.float32, st.integers(1, 600), elements=st.integers(-40, 40).map(lambda n: n / 4)
)


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def reference(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """The definitions, one after the other, on the whole vocabulary sorted by (logit, id)."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    probabilities = softmax(logits[order], sampling.temperature)
    if sampling.top_p < 1:
        before = np.concatenate([[0.0], probabilities.cumsum()[:-1]])
        order = [i for i, p in zip(order, before, strict=True) if p < sampling.top_p]
        probabilities = softmax(logits[order], sampling.temperature)
    if sampling.min_p:
        keep = probabilities >= sampling.min_p * probabilities.max()
        order = [i for i, k in zip(order, keep, strict=True) if k]
        probabilities = softmax(logits[order], sampling.temperature)
    return dict(zip(order, probabilities.tolist(), strict=True))


@given(logits=LOGITS)
def test_greedy_takes_the_first_of_the_largest(logits: np.ndarray) -> None:
    assert Sampler(Sampling()).choose(logits) == int(np.argmax(logits))


@settings(max_examples=300, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 50, 1000]),
    # Halves are left out: a cumulative sum that equals top_p up to rounding may fall either way.
    top_p=st.sampled_from([1.0, 0.903, 0.497, 0.011]),
    min_p=st.sampled_from([0.0, 0.052]),
)
def test_filters_are_their_definitions(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature, top_k, top_p, min_p)
    ids, probabilities = Sampler(sampling).distribution(logits)
    wanted = reference(logits, sampling)
    assert set(ids.tolist()) == set(wanted)
    for token, probability in zip(ids.tolist(), probabilities, strict=True):
        assert probability == pytest.approx(wanted[token], rel=1e-9)


def test_top_p_over_more_than_the_first_candidates() -> None:
    """A flat distribution needs more candidates than top-p looks at first."""
    ids, probabilities = Sampler(Sampling(1.0, top_p=0.5)).distribution(
        np.zeros(5000, dtype=np.float32)
    )
    assert ids.tolist() == list(range(2501)) or ids.tolist() == list(range(2500))
    assert probabilities.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("sampling", [Sampling(1.0, seed=5), Sampling(0.7, 4, 0.9, seed=5)])
def test_drawn_frequencies_follow_the_distribution(sampling: Sampling) -> None:
    logits = np.array([1.0, 0.5, 0.0, 2.0, -1.0, 1.5, 0.2, 0.9], dtype=np.float32)
    sampler = Sampler(sampling)
    ids, probabilities = sampler.distribution(logits)
    counts = np.bincount([sampler.choose(logits) for _ in range(DRAWS)], minlength=8)
    assert counts.sum() == counts[ids].sum() == DRAWS
    expected = DRAWS * probabilities
    assert ((counts[ids] - expected) ** 2 / expected).sum() < CHI_SQUARED_LIMIT


def test_a_seed_repeats_and_another_differs() -> None:
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)

    def draws(seed: int | None) -> tuple[list[int], int]:
        sampler = Sampler(Sampling(1.0, seed=seed))
        return [sampler.choose(logits) for _ in range(20)], sampler.seed

    assert draws(1) == draws(1)
    assert draws(1)[0] != draws(2)[0]
    drawn, seed = draws(None)
    assert draws(seed)[0] == drawn  # a seed that was not given is known afterwards


def test_repetition_penalty_lowers_what_occurred() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], dtype=np.float32)
    sampler = Sampler(Sampling(repetition_penalty=1.5))
    before = logits.copy()
    sampler.observe([2])
    assert sampler.choose(logits) == 0
    assert sampler.choose(logits) == 1  # 2.0 / 1.5 is below 1.9: token 0 was just chosen
    assert (logits == before).all()
    only_negative = np.array([-1.0, -1.1], dtype=np.float32)
    sampler = Sampler(Sampling(repetition_penalty=1.5))
    sampler.observe([0])
    assert sampler.choose(only_negative) == 1


def test_tiny_temperature_is_greedy() -> None:
    logits = np.array([0.0, 1.0, 0.999], dtype=np.float32)
    assert Sampler(Sampling(1e-300, seed=0)).choose(logits) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    logits = np.array([0.0, bad, 1.0], dtype=np.float32)
    with pytest.raises(ArtifactError, match="not finite"):
        Sampler(Sampling()).choose(logits)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"seed": -3}, "seed"),
    ],
)
def test_parameters_out_of_range_are_named(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is "):
        Sampling(**arguments)  # type: ignore[arg-type]
