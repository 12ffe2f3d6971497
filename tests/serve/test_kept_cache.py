"""A foreign request between the messages of a conversation: the conversation's cache stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from awq_edge.runtime.generation import Request, TokenLoop
from awq_edge.runtime.model import load
from awq_edge.runtime.session import CacheCopy
from awq_edge.serve.kept_cache import KeptCache
from tests.runtime.fakes import ScriptedSession

CONVERSATION = list(range(1, 201))
TITLE = [*range(1, 7), *range(50, 150)]  # begins as the conversation does
OTHER = [*range(1, 7), *range(150, 200)]


def reused(session: ScriptedSession, kept: KeptCache, *requests: Sequence[int]) -> list[int]:
    """Tokens of each prompt that were there already."""
    found = []
    for ids in requests:
        kept.prepare(ids)
        loop = TokenLoop(session, Request(ids, max_new_tokens=2))
        list(loop.tokens())
        assert session.cached_ids[: len(ids)] == list(ids)
        found.append(loop.timings.reused_tokens)
    return found


@pytest.fixture
def session() -> ScriptedSession:
    return ScriptedSession(lambda ids: 0)


def test_each_message_of_a_conversation_goes_on_behind_a_foreign_request(
    session: ScriptedSession,
) -> None:
    longer = [*CONVERSATION, *range(20)]  # the answer was 0, too
    found = reused(session, KeptCache(session), CONVERSATION, TITLE, longer, TITLE, [*longer, 7, 8])
    assert found == [0, 6, 201, 105, 220]


def test_of_two_the_longer_is_kept(session: ScriptedSession) -> None:
    kept = KeptCache(session)
    found = reused(session, kept, CONVERSATION, TITLE, OTHER, TITLE, [*CONVERSATION, 9])
    # The title's request was the shorter of the two that OTHER could have thrown away.
    assert found == [0, 6, 6, 6, 200]


def test_what_nobody_goes_on_with_gives_way(session: ScriptedSession) -> None:
    kept = KeptCache(session)
    foreign = [[*range(1, 7), *range(n, n + 90)] for n in range(10, 40)]
    reused(session, kept, CONVERSATION, *foreign)
    assert reused(session, kept, [*CONVERSATION, 9]) == [6]


def test_a_conversation_alone_is_never_copied(session: ScriptedSession) -> None:
    kept = KeptCache(session)
    for length in range(40, 200, 20):
        reused(session, kept, CONVERSATION[:length])
        assert kept.nbytes == 0
    reused(session, kept, CONVERSATION[:180])  # its answer once more
    assert kept.nbytes == 0


def test_without_memory_for_a_copy_requests_go_on(
    session: ScriptedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> CacheCopy:
        raise MemoryError

    monkeypatch.setattr(session, "copy_cache", full)
    assert reused(session, KeptCache(session), CONVERSATION, TITLE, CONVERSATION) == [0, 6, 6]


def test_a_cache_that_comes_back_is_the_same(tiny_bundle: Path) -> None:
    with load(tiny_bundle, threads=1) as model:
        session = model.session
        session.prefill([5, 6, 7, 8, 9])
        copy = session.copy_cache()
        assert copy is not None and copy.nbytes > 0
        expected = session.decode(10).copy()
        session.reset()
        session.prefill([11, 12, 13, 14, 15, 16, 17, 18])
        session.restore_cache(copy)
        assert list(session.cached_ids) == [5, 6, 7, 8, 9]
        assert np.array_equal(session.decode(10), expected)
