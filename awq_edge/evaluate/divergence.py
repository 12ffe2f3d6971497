"""The divergence of a model's predictions from a reference's, over the windows of a text.

Before every token that `perplexity` scores, both models give a distribution of the next token for
the same tokens before it: P the reference's, Q the target's.

    KL(P || Q) = sum over the vocabulary of P log(P / Q)     nats, 0 where the two are equal
                                                             (Kullback and Leibler, 1951)

The reference comes first: its likely tokens count, and a target that is too sure of itself is
punished. Rows of logits are compared as they come, on the GPU that computed one side or both, else
on the host. Of each only a few numbers are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.arrays import (
    Logits,
    functions,
    in_one_library,
    rows_at_a_time,
    to_float64,
    to_host,
)
from awq_edge.evaluate.logits_models import LogitsModel
from awq_edge.evaluate.perplexity import Progress, check_length, check_window, windows
from awq_edge.runtime.text_tokens import TokenizedText

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_TOP = 5


@dataclass(frozen=True)
class Divergence:
    """Comparison of two models, one entry a scored token, all float64 [tokens]."""

    kl: Float64  # KL(reference || target), nats
    same_top1: Float64  # 1 where the same token is likeliest for both
    shared_top5: Float64  # share of the reference's five likeliest tokens among the target's five
    # nll, reference_nll: negative log-likelihood of the text's token, nats
    nll: Float64
    reference_nll: Float64

    @property
    def perplexity(self) -> float:
        """The target's perplexity, as `perplexity.score` gives it."""
        return math.exp(float(self.nll.mean()))

    @property
    def reference_perplexity(self) -> float:
        return math.exp(float(self.reference_nll.mean()))


def divergence(
    target: LogitsModel,
    reference: LogitsModel,
    text: TokenizedText,
    *,
    window: int,
    stride: int,
    progress: Progress | None = None,
) -> Divergence:
    """Compare `target` with `reference` on the tokens of a text that `perplexity.score` scores.

    Raises ConfigError when the models have different vocabularies, or window and stride do not fit
    each other or the contexts; ModelError when an output is not finite.
    """
    check_same_vocabulary(target, reference)
    check_window(window, stride, min(target.context, reference.context), text.prefix)
    check_length(text)
    parts = list(windows(text, window, stride))
    total = sum(part.tokens for part in parts)
    measured: list[Divergence] = []
    done = 0
    for part in parts:
        inputs, targets, seen = part.inputs(text.ids), part.targets(text.ids), 0
        for rows, reference_rows in _paired(
            target.logits(inputs, part.first_row), reference.logits(inputs, part.first_row)
        ):
            tokens = targets[seen : seen + len(rows)]
            measured.append(compare(rows, reference_rows, tokens, part.first_scored + seen))
            seen += len(rows)
        assert seen == part.tokens, "a source gave another number of rows than was asked for"
        done += part.tokens
        if progress is not None:
            progress(done, total)
    names = Divergence.__dataclass_fields__
    return Divergence(**{n: np.concatenate([getattr(m, n) for m in measured]) for n in names})


def compare(
    logits: Logits, reference_logits: Logits, tokens: Int64, position: int = 0
) -> Divergence:
    """Compare two models at consecutive positions. Raises ModelError when an output is not finite.

    logits, reference_logits: float32 [rows, vocab], in one library on one device.
    tokens: int64 [rows], the text's.
    position: of the first row's token in the text, for the message.
    """
    xp = functions(logits)
    log_q, log_p = log_softmax(logits), log_softmax(reference_logits)  # [rows, vocab]
    rows = np.arange(len(tokens))
    nll, reference_nll = -log_q[rows, tokens], -log_p[rows, tokens]
    p = xp.exp(log_p)
    with np.errstate(invalid="ignore"):  # a token that neither model can give: 0, not inf - inf
        log_p -= log_q
        kl = xp.sum(xp.where(p > 0, p * log_p, 0.0), axis=1)
    top, reference_top = _likeliest(logits), _likeliest(reference_logits)  # [rows, k]
    shared = xp.sum(top[:, :, None] == reference_top[:, None, :], axis=(1, 2), dtype=xp.float64)
    same = to_float64(top[:, 0] == reference_top[:, 0])
    kl, same, shared, nll, reference_nll = to_host(
        xp.stack([kl, same, shared / top.shape[1], nll, reference_nll])
    )
    for name, values in (("reference", reference_nll), ("target", nll), ("target", kl)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ModelError(
                f"the {name}'s output is not finite at token {position + int(bad[0])}: its weights "
                "are damaged, or its activations overflow float16 (use float32)"
            )
    # Never negative but for the rounding of the sum.
    return Divergence(np.maximum(kl, 0.0), same, shared, nll, reference_nll)


def log_softmax(logits: Logits) -> Any:
    """Log-probabilities of each row, in nats: float64, of the same shape [rows, vocab].

    In float64 throughout: the KL of two near models is a sum of differences that are small beside
    their terms.
    """
    xp = functions(logits)
    shifted = to_float64(logits)
    with np.errstate(invalid="ignore"):  # infinite logits give nan, which the caller reports
        shifted -= xp.amax(shifted, axis=1, keepdims=True)
    shifted -= xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))
    return shifted


def check_same_vocabulary(target: LogitsModel, reference: LogitsModel) -> None:
    """Raise ConfigError unless every id means the same token to both models."""
    names = f"{target.info.path} and the reference {reference.info.path}"
    if target.vocab_size != reference.vocab_size:
        raise ConfigError(
            f"{names} have vocabularies of {target.vocab_size} and {reference.vocab_size} tokens; "
            "compare models of one vocabulary"
        )
    ours, theirs = target.tokenizer.vocabulary(), reference.tokenizer.vocabulary()
    if ours != theirs:
        token, _ = min(ours.items() ^ theirs.items(), key=lambda item: (item[1], item[0]))
        raise ConfigError(
            f"{names} have different tokenizers: {token!r} is token {ours.get(token, 'none')} and "
            f"{theirs.get(token, 'none')}; compare models of one tokenizer"
        )


def _paired(first: Iterator[Logits], second: Iterator[Logits]) -> Iterator[tuple[Logits, Logits]]:
    """The rows of two sources side by side, a few at a time, whatever the sizes of their blocks."""
    ours: Logits | None = None
    theirs: Logits | None = None
    while True:
        if ours is None or not len(ours):
            ours = next(first, None)
        if theirs is None or not len(theirs):
            theirs = next(second, None)
        if ours is None or theirs is None:
            assert ours is theirs, "two sources gave different numbers of rows"
            return
        count = min(len(ours), len(theirs))
        one, other = in_one_library(ours[:count], theirs[:count])
        step = rows_at_a_time(one)
        for start in range(0, count, step):
            yield one[start : start + step], other[start : start + step]
        ours, theirs = ours[count:], theirs[count:]


def _likeliest(logits: Logits) -> Any:
    """Ids of the five largest logits of each row, largest first: int64 [rows, 5 or vocab].

    Five maxima: a partial sort of a row takes NumPy thirty times as long.
    """
    xp = functions(logits)
    left = logits + 0.0
    rows = np.arange(len(logits))
    ids = []
    for _ in range(min(_TOP, logits.shape[1])):
        ids.append(xp.argmax(left, axis=1))
        left[rows, ids[-1]] = -np.inf
    return xp.stack(ids, axis=1)
