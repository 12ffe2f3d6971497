"""A second conversation's KV cache, beside the session's.

A client asks for a title, tags or a summary after each message of a conversation. Such a request
shares a few tokens with the conversation and would take its place in the cache, so that the next
message prefills everything again. Therefore the positions that a foreign request would overwrite
are copied first, and restored for the request that continues them:

    session   [conversation, 691 tokens]      title request: 6 of them are the same
    kept      [conversation]                  session  [title]
    next message: 691 tokens are the same  -> session  [conversation]   kept  [title]

There is room for one copy: of two, the longer is kept. It is in the host's memory and takes as many
bytes as the filled part of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from awq_edge.errors import ResourceError
from awq_edge.runtime.generation import common_prefix
from awq_edge.runtime.session import CacheCopy, Session

# Tokens whose computation takes longer than copying a cache does.
_WORTHWHILE = 32
# Requests in a row that went on with something else, after which a copy gives way to a shorter one.
_PATIENCE = 16


class KeptCache:
    """Call `prepare` before each request; for the thread that owns the session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: CacheCopy | None = None
        self._unused = 0  # requests since the copy was of use
        self._prompt: Sequence[int] = ()  # of the request before

    @property
    def nbytes(self) -> int:
        return 0 if self._kept is None else self._kept.nbytes

    def prepare(self, ids: Sequence[int]) -> None:
        """Restore the positions that the prompt continues, and keep those that it would
        overwrite."""
        kept, session = self._kept, self._session
        here = common_prefix(session.cached_ids, ids)
        there = 0 if kept is None else common_prefix(kept.ids, ids)
        lost = len(self._prompt) - common_prefix(self._prompt, ids)
        self._prompt = tuple(ids)
        self._unused += 1
        if kept is not None and there - here >= _WORTHWHILE:
            self._kept = self._copied(session.past_length)
            session.restore_cache(kept)
            self._unused = 0
        elif lost >= _WORTHWHILE and (
            kept is None or session.past_length >= len(kept.ids) or self._unused > _PATIENCE
        ):
            self._kept = None  # before the new one is made: there is memory for one
            self._kept = self._copied(session.past_length)
            self._unused = 0

    def _copied(self, length: int) -> CacheCopy | None:
        if length < _WORTHWHILE:
            return None
        try:
            return self._session.copy_cache()
        except (MemoryError, ResourceError):
            return None
