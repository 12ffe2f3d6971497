"""Log-probabilities and constraints in the token loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from awq_edge.runtime.generation import Request, TokenLoop
from awq_edge.runtime.logprobs import token_logprobs
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.session import Float32

from .fakes import ScriptedSession, scripted

PROMPT = [10, 11, 12]


def test_they_are_the_softmax_and_its_largest() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], dtype=np.float32)) + np.float32(7)
    found = token_logprobs(logits, 2, 3)
    assert found.token_id == 2
    assert found.logprob == pytest.approx(math.log(0.2), rel=1e-5)
    assert [i for i, _ in found.top] == [1, 3, 2]
    assert [p for _, p in found.top] == pytest.approx([math.log(p) for p in (0.4, 0.3, 0.2)], 1e-5)


def test_equal_ones_are_named_by_id_and_no_more_than_there_are() -> None:
    logits = np.zeros(3, dtype=np.float32)
    assert [i for i, _ in token_logprobs(logits, 1, 2).top] == [0, 1]
    assert len(token_logprobs(logits, 1, 20).top) == 3
    assert token_logprobs(logits, 1, 0).top == ()


def test_every_token_given_out_has_one_and_the_stop_token_none() -> None:
    request = Request(PROMPT, stop_token_ids=frozenset({0}), top_logprobs=1)
    loop = TokenLoop(scripted(PROMPT, [20, 21]), request)
    assert list(loop.tokens()) == [20, 21]
    assert [scored.token_id for scored in loop.logprobs] == [20, 21]
    assert [scored.top[0][0] for scored in loop.logprobs] == [20, 21]


def test_they_are_the_models_own_whatever_the_sampling() -> None:
    plain = TokenLoop(scripted(PROMPT, [20]), Request(PROMPT, 1, top_logprobs=2))
    hot = Sampling(temperature=0.01, top_k=1, repetition_penalty=2.0)
    drawn = TokenLoop(scripted(PROMPT, [20]), Request(PROMPT, 1, hot, top_logprobs=2))
    assert list(plain.tokens()) == list(drawn.tokens()) == [20]
    assert plain.logprobs == drawn.logprobs


class OnlyEven:
    """Even ids, and three of them."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def mask(self, logits: Float32) -> Float32:
        masked = logits.copy()
        masked[1::2] = -np.inf
        return masked

    def accept(self, token_id: int) -> bool:
        self.accepted.append(token_id)
        return len(self.accepted) == 3


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=1), Sampling(1.0, top_p=0.5)])
def test_a_constraint_masks_every_token_and_ends_the_answer(sampling: Sampling) -> None:
    session = ScriptedSession(lambda ids: 21)  # an odd one is likeliest always
    constraint = OnlyEven()
    loop = TokenLoop(session, Request(PROMPT, sampling=sampling, constraint=constraint))
    tokens = list(loop.tokens())
    assert tokens == constraint.accepted
    assert len(tokens) == 3
    assert all(token % 2 == 0 for token in tokens)
    assert loop.finish_reason == "stop"


def test_log_probabilities_beside_a_constraint_are_the_unmasked_ones() -> None:
    session = ScriptedSession(lambda ids: 21)
    loop = TokenLoop(session, Request(PROMPT, 2, constraint=OnlyEven(), top_logprobs=1))
    list(loop.tokens())
    assert [scored.top[0][0] for scored in loop.logprobs] == [21, 21]
