"""A session whose next token is a function of the ids before it: the loop without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from awq_edge.errors import ConfigError, ResourceError
from awq_edge.runtime.session import CacheCopy, Float32, SessionInfo, SessionMemory


class ScriptedSession:
    """Implements `Session`. next_token: from all ids in the cache to the id that is likeliest.

    calls: what was executed: ("prefill", ids), ("decode", id) and ("truncate", length).
    """

    def __init__(
        self,
        next_token: Callable[[Sequence[int]], int],
        *,
        vocab_size: int = 300,
        context: int = 1000,
        prefill_chunk: int = 8,
        runner_up: int | None = None,
    ) -> None:
        """runner_up: the id that is second wherever it is not first."""
        self._runner_up = runner_up
        self._next_token = next_token
        self.vocab_size = vocab_size
        self.context = context
        self.prefill_chunk = prefill_chunk
        self.cached_ids: list[int] = []
        self.calls: list[tuple[str, object]] = []
        self.info = SessionInfo("scripted", "none", 1, {})
        self.memory = SessionMemory(0)

    @property
    def past_length(self) -> int:
        return len(self.cached_ids)

    def prefill(self, ids: Sequence[int]) -> Float32:
        assert 1 <= len(ids) <= self.prefill_chunk
        self.calls.append(("prefill", list(ids)))
        return self._append(ids)

    def decode(self, token_id: int) -> Float32:
        self.calls.append(("decode", token_id))
        return self._append([token_id])

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Float32:
        rows = [self._append([token_id]) for token_id in ids]
        return np.stack(rows)[list(positions)]

    def truncate(self, length: int) -> None:
        if length > len(self.cached_ids):
            raise ConfigError("longer than the cache")
        self.calls.append(("truncate", length))
        del self.cached_ids[length:]

    def reset(self) -> None:
        self.truncate(0)

    def copy_cache(self) -> CacheCopy | None:
        ids = tuple(self.cached_ids)
        return CacheCopy(ids, {"ids": np.array(ids, dtype=np.int64)})

    def restore_cache(self, copy: CacheCopy) -> None:
        self.cached_ids[:] = copy.ids

    def close(self) -> None:
        self.reset()

    def executed(self) -> list[tuple[str, object]]:
        """The calls that run the model."""
        return [call for call in self.calls if call[0] != "truncate"]

    def _append(self, ids: Sequence[int]) -> Float32:
        if len(self.cached_ids) + len(ids) > self.context:
            raise ResourceError("beyond the context")
        self.cached_ids.extend(ids)
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        if self._runner_up is not None:
            logits[self._runner_up] = 0.5
        logits[self._next_token(self.cached_ids)] = 1.0
        return logits


def scripted(prompt: Sequence[int], answer: Sequence[int], **sizes: int) -> ScriptedSession:
    """A session that answers `prompt` with `answer`, one id after the other, then with id 0."""
    continuation = [*answer, *([0] * 1000)]
    start = len(prompt)
    return ScriptedSession(lambda ids: continuation[max(len(ids) - start, 0)], **sizes)
