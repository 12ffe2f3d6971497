"""Perplexity of a text over strided windows.

    text   t0 t1 t2 t3 t4 t5 t6 t7 t8 t9        window 6, stride 2
           [.. s1 s2 s3 s4 s5]                  s: scored here, given everything before it
                 [.. .. .. .. s6 s7]               in its window
                       [.. .. .. .. s8 s9]

Every token but the first is scored once, with at least window - stride tokens of context as soon
as the text is that long: perplexity = exp(sum of negative log-likelihoods / tokens scored). With
stride = window nothing overlaps, and the first token of each window stays unscored. This is the
definition of the Hugging Face documentation ("Perplexity of fixed-length models").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.sources import Float32, LogitsSource

Progress = Callable[[int, int], None]  # (tokens scored, tokens to score)

DEFAULT_WINDOW = 1024  # tokens, or the model's context where that is shorter
_ROWS = 64  # rows of logits whose exponentials are in memory at a time


@dataclass(frozen=True)
class Window:
    """Tokens begin..end-1 are the input; those from `first_scored` on count."""

    begin: int
    first_scored: int
    end: int

    @property
    def tokens(self) -> int:
        """Tokens that are scored."""
        return self.end - self.first_scored


@dataclass(frozen=True)
class Score:
    """nll: sum of the negative log-likelihoods of `tokens` tokens, in nats."""

    nll: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)


def windows(length: int, window: int, stride: int) -> Iterator[Window]:
    """The windows over `length` tokens; see the drawing above. 1 <= stride <= window."""
    scored = 0
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        first_scored = max(scored, begin + 1)  # the first has nothing to be predicted from
        if end > first_scored:
            yield Window(begin, first_scored, end)
        scored = end
        if end == length:
            return


def score(
    source: LogitsSource,
    ids: Sequence[int],
    *,
    window: int,
    stride: int,
    progress: Progress | None = None,
) -> Score:
    """Score `ids` with `source`.

    Raises ConfigError when window and stride do not fit each other or the source's context,
    ModelError when the model's output is not finite.
    """
    check_window(window, stride, source.context)
    check_length(ids)
    nll = 0.0
    tokens = 0
    parts = list(windows(len(ids), window, stride))
    total = sum(part.tokens for part in parts)
    for part in parts:
        inputs = list(ids[part.begin : part.end - 1])
        position = part.first_scored
        for logits in source.logits(inputs, part.first_scored - part.begin - 1):
            targets = np.asarray(ids[position : position + len(logits)], dtype=np.int64)
            nll += float(negative_log_likelihoods(logits, targets).sum())
            position += len(logits)
        assert position == part.end, "a source gave another number of rows than was asked for"
        tokens += part.tokens
        if not math.isfinite(nll):
            raise ModelError(
                f"the model's output is not finite at token {part.first_scored}..{part.end - 1}: "
                "its weights are damaged, or its activations overflow float16 (use float32)"
            )
        if progress is not None:
            progress(tokens, total)
    return Score(nll, tokens)


def choose_window(window: int | None, stride: int | None, context: int) -> tuple[int, int]:
    """Window and stride, None replaced by the default: 1024 tokens or the context, and half of it.

    Raises ConfigError as `check_window`.
    """
    window = min(DEFAULT_WINDOW, context) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    check_window(window, stride, context)
    return window, stride


def check_length(ids: Sequence[int]) -> None:
    """Raise ConfigError where no token has one before it."""
    if len(ids) < 2:
        raise ConfigError(
            f"the text has {len(ids)} token(s); scoring needs at least 2: give a longer --text "
            "or a larger --max-tokens"
        )


def check_max_tokens(max_tokens: int | None) -> None:
    """Raise ConfigError for a --max-tokens that leaves nothing to score."""
    if max_tokens is not None and max_tokens < 2:
        raise ConfigError(f"--max-tokens {max_tokens}: must be 2 or more")


def check_window(window: int, stride: int, context: int) -> None:
    """Raise ConfigError when a window is impossible. context: positions the model can take."""
    if window < 2:
        raise ConfigError(f"--window {window}: must be 2 or more")
    if not 1 <= stride <= window:
        raise ConfigError(f"--stride {stride}: must be from 1 to the window of {window}")
    if window > context:
        raise ConfigError(
            f"--window {window} is beyond the context of {context} tokens; choose --window "
            f"{context} or less, or export with a larger --context"
        )


def negative_log_likelihoods(
    logits: Float32, targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[target] of each row, in nats: float64 [rows].

    logits: float32 [rows, vocab]. targets: int64 [rows].
    """
    result = np.empty(len(targets), dtype=np.float64)
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS]
        wanted = targets[start : start + _ROWS]
        highest = rows.max(axis=1)
        # Exponentials in float32 (relative error 1e-7), their sum in float64.
        total = np.exp(rows - highest[:, None]).sum(axis=1, dtype=np.float64)
        chosen = rows[np.arange(len(wanted)), wanted].astype(np.float64)
        result[start : start + _ROWS] = np.log(total) + highest.astype(np.float64) - chosen
    return result
