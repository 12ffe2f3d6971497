"""Answers in the shapes of the two APIs, whole and in chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from awq_edge.runtime.generation import FinishReason, Generation
from awq_edge.serve.job import ScoredToken
from awq_edge.serve.task import Api

# The API has no word of its own for a context that is full.
_FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "context": "length",
    "cancelled": "stop",
}
_PREFIXES: dict[Api, str] = {"completions": "cmpl", "chat": "chatcmpl"}
_OBJECTS: dict[Api, tuple[str, str]] = {
    "completions": ("text_completion", "text_completion"),
    "chat": ("chat.completion", "chat.completion.chunk"),
}
# JSON has no infinity: the logarithm of a probability that is 0.
_LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class Answer:
    """The fields that all chunks of one answer share. logprobs: asked for by the request."""

    api: Api
    model: str
    fingerprint: str
    logprobs: bool
    identifier: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, generation: Generation, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": self._logprobs(tokens),
            "finish_reason": _FINISH_REASONS[generation.finish_reason],
        }
        if self.api == "chat":
            choice["message"] = {"role": "assistant", "content": generation.text, "refusal": None}
            if generation.thoughts:
                choice["message"]["reasoning_content"] = generation.thoughts
        else:
            choice["text"] = generation.text
        return {**self._head(0), "choices": [choice], "usage": usage(generation)}

    def chunk(
        self,
        text: str | None,
        tokens: Sequence[ScoredToken] = (),
        finish_reason: FinishReason | None = None,
        *,
        first: bool = False,
        thought: bool = False,
    ) -> dict[str, Any]:
        """A part of a stream.

        first: the chunk of a chat that names the role.
        thought: the text is no part of the answer.
        """
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": self._logprobs(tokens) if tokens else None,
            "finish_reason": None if finish_reason is None else _FINISH_REASONS[finish_reason],
        }
        if self.api == "chat":
            choice["delta"] = {"role": "assistant", "content": ""} if first else {}
            if text is not None:
                choice["delta"]["reasoning_content" if thought else "content"] = text
        else:
            choice["text"] = text or ""
        return {**self._head(1), "choices": [choice]}

    def usage_chunk(self, generation: Generation) -> dict[str, Any]:
        """The last chunk of a stream whose usage was asked for."""
        return {**self._head(1), "choices": [], "usage": usage(generation)}

    def _head(self, which: int) -> dict[str, Any]:
        return {
            "id": f"{_PREFIXES[self.api]}-{self.identifier}",
            "object": _OBJECTS[self.api][which],
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return _chat_logprobs(tokens) if self.api == "chat" else _completion_logprobs(tokens)


def usage(generation: Generation) -> dict[str, Any]:
    """Counts of tokens. cached_tokens: prompt tokens whose keys and values were in the KV cache."""
    timings = generation.timings
    counts: dict[str, Any] = {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.generated_tokens,
        "total_tokens": timings.prompt_tokens + timings.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.reused_tokens},
    }
    if generation.thought_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": generation.thought_tokens}
    return counts


def to_json(value: object) -> str:
    """Compact JSON, UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _completion_logprobs(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    return {
        "tokens": [_text(token.data) for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [
            {_text(data): _finite(logprob) for data, logprob in _alternatives(token)}
            for token in tokens
        ],
        "text_offset": [token.offset for token in tokens],
    }


def _alternatives(token: ScoredToken) -> list[tuple[bytes, float]]:
    """The likeliest tokens and the chosen one, the least likely first: where two have one text, the
    likelier stays."""
    if not token.top:
        return []
    return sorted((*token.top, (token.data, token.logprob)), key=lambda scored: scored[1])


def _chat_logprobs(tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    def entry(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": _text(data), "logprob": _finite(logprob), "bytes": list(data)}

    return {
        "content": [
            entry(token.data, token.logprob) | {"top_logprobs": [entry(*top) for top in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _text(data: bytes) -> str:
    r"""A token's text; part of a character as the API writes it: bytes:\xe2."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
