"""Perplexity of a text over strided windows.

    text      t0 t1 t2 t3 t4 t5 t6 t7 t8 t9      window 6, stride 2, a tokenizer with a BOS
    BOS       s0 s1 s2 s3 s4                     s: scored here, given everything before it
    BOS             .. .. .. s5 s6                  in its window, BOS included
    BOS                   .. .. .. s7 s8
    BOS                         .. .. .. s9

What the tokenizer puts before a text (most often one token, BOS) stands before each window, and
takes places of it: models that were trained to see it read a text without it worse. Every token of
the text is scored once, given at least window - stride tokens as soon as the text is that long:
perplexity = exp(sum of negative log-likelihoods / tokens scored).

A tokenizer that puts nothing before a text leaves the text's first token unscored, and with
stride = window the first of each window; that is the loop of the Hugging Face documentation
("Perplexity of fixed-length models").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.arrays import Logits, functions, rows_at_a_time, to_float64, to_host
from awq_edge.evaluate.logits_models import LogitsModel
from awq_edge.runtime.text_tokens import TokenizedText

Progress = Callable[[int, int], None]  # (tokens scored, tokens to score)

DEFAULT_WINDOW = 1024  # tokens, or the model's context where that is shorter


@dataclass(frozen=True)
class Window:
    """Tokens begin..end-1 of the text, after `prefix`; those from `first_scored` on are scored."""

    prefix: tuple[int, ...]
    begin: int
    first_scored: int
    end: int

    @property
    def tokens(self) -> int:
        """The number of scored tokens."""
        return self.end - self.first_scored

    @property
    def first_row(self) -> int:
        """The position in `inputs` whose logits predict the first scored token."""
        return len(self.prefix) + self.first_scored - self.begin - 1

    def inputs(self, ids: Sequence[int]) -> list[int]:
        """Token ids that a model reads; the last one is only predicted. ids: of the text."""
        return [*self.prefix, *ids[self.begin : self.end - 1]]

    def targets(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Token ids to predict: int64 [tokens]. ids: of the text."""
        return np.asarray(ids[self.first_scored : self.end], dtype=np.int64)


@dataclass(frozen=True)
class Score:
    """The score of a text. nll: sum of the negative log-likelihoods of `tokens` tokens, in nats."""

    nll: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)


def windows(text: TokenizedText, window: int, stride: int) -> Iterator[Window]:
    """The windows over a text; see the drawing above.

    window: tokens of one input and its last target, the prefix included. 1 <= stride <= window; a
    stride beyond the window's tokens of text is cut to them.
    """
    length, prefix = len(text.ids), text.prefix
    body = window - len(prefix)
    scored = 0
    for begin in range(0, length, min(stride, body)):
        end = min(begin + body, length)
        # Without a prefix the first token of a window has nothing to be predicted from.
        first_scored = max(scored, begin if prefix else begin + 1)
        if end > first_scored:
            yield Window(prefix, begin, first_scored, end)
        scored = end
        if end == length:
            return


def score(
    source: LogitsModel,
    text: TokenizedText,
    *,
    window: int,
    stride: int,
    progress: Progress | None = None,
) -> Score:
    """Score a text with `source`.

    Raises ConfigError when window and stride do not fit each other or the source's context,
    ModelError when the model's output is not finite.
    """
    check_window(window, stride, source.context, text.prefix)
    check_length(text)
    nll = 0.0
    tokens = 0
    parts = list(windows(text, window, stride))
    total = sum(part.tokens for part in parts)
    for part in parts:
        targets, done = part.targets(text.ids), 0
        for logits in source.logits(part.inputs(text.ids), part.first_row):
            wanted = targets[done : done + len(logits)]
            nll += float(negative_log_likelihoods(logits, wanted).sum())
            done += len(logits)
        assert done == part.tokens, "a source gave another number of rows than was asked for"
        tokens += part.tokens
        if not math.isfinite(nll):
            raise ModelError(
                f"the model's output is not finite at token {part.first_scored}..{part.end - 1}: "
                "its weights are damaged, or its activations overflow float16 (use float32)"
            )
        if progress is not None:
            progress(tokens, total)
    return Score(nll, tokens)


def choose_window(
    window: int | None, stride: int | None, context: int, prefix: Sequence[int]
) -> tuple[int, int]:
    """Window and stride, None replaced by the default: 1024 tokens or the context, and half of it.

    prefix: ids before each window; the stride is cut to the tokens of text after it, so that none
        is left out.
    Raises ConfigError as `check_window`.
    """
    window = min(DEFAULT_WINDOW, context) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    check_window(window, stride, context, prefix)
    return window, min(stride, window - len(prefix))


def check_length(text: TokenizedText) -> None:
    """Raise ConfigError where no token has one before it."""
    if len(text.prefix) + len(text.ids) < 2 or not text.ids:
        raise ConfigError(
            f"the text has {len(text.ids)} token(s); scoring needs at least "
            f"{1 if text.prefix else 2}: give a longer --text or a larger --max-tokens"
        )


def check_max_tokens(max_tokens: int | None) -> None:
    """Raise ConfigError for a --max-tokens that leaves nothing to score."""
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"--max-tokens {max_tokens}: must be 1 or more")


def check_window(window: int, stride: int, context: int, prefix: Sequence[int] = ()) -> None:
    """Raise ConfigError when a window is impossible.

    context: positions the model can take.
    prefix: token ids before each window.
    """
    least = max(2, len(prefix) + 1)
    if window < least:
        raise ConfigError(f"--window {window}: must be {least} or more")
    if not 1 <= stride <= window:
        raise ConfigError(f"--stride {stride}: must be from 1 to the window of {window}")
    if window > context:
        raise ConfigError(
            f"--window {window} is beyond the context of {context} tokens; choose --window "
            f"{context} or less, or export with a larger --context"
        )


def negative_log_likelihoods(
    logits: Logits, targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[target] of each row, in nats: float64 [rows].

    logits: float32 [rows, vocab]. targets: int64 [rows].
    """
    xp, step = functions(logits), rows_at_a_time(logits)
    result = np.empty(len(targets), dtype=np.float64)
    for start in range(0, len(targets), step):
        rows = logits[start : start + step]
        wanted = targets[start : start + step]
        highest = xp.amax(rows, axis=1)
        # Exponentials in float32 (relative error 1e-7), their sum in float64.
        total = xp.sum(xp.exp(rows - highest[:, None]), axis=1, dtype=xp.float64)
        chosen = rows[np.arange(len(wanted)), wanted]
        surprise = xp.log(total) + to_float64(highest) - to_float64(chosen)
        result[start : start + step] = to_host(surprise)
    return result
