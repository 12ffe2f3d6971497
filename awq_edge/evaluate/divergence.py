"""The divergence of a model's predictions from a reference's, over the windows of a text.

Before every token that `perplexity` scores, both models give a distribution of the next token for
the same tokens before it: P the reference's, Q the target's.

    KL(P || Q) = sum over the vocabulary of P log(P / Q)     nats, 0 where the two are equal
                                                             (Kullback and Leibler, 1951)

The reference comes first: its likely tokens count, and a target that is too sure of itself is
punished. Rows of logits are compared as they come; of each only a few numbers are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from awq_edge.errors import ConfigError, ModelError
from awq_edge.evaluate.logits_models import Float32, LogitsModel
from awq_edge.evaluate.perplexity import Progress, check_length, check_window, windows
from awq_edge.runtime.text_tokens import TokenizedText

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_ROWS = 16  # rows of logits in float64 at a time; a row of 150,000 words takes 1.2 MB
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
    logits: Float32, reference_logits: Float32, tokens: Int64, position: int = 0
) -> Divergence:
    """Compare two models at consecutive positions. Raises ModelError when an output is not finite.

    logits, reference_logits: float32 [rows, vocab].
    tokens: int64 [rows], the text's.
    position: of the first row's token in the text, for the message.
    """
    log_q, log_p = log_softmax(logits), log_softmax(reference_logits)  # [rows, vocab]
    rows = np.arange(len(tokens))
    nll, reference_nll = -log_q[rows, tokens], -log_p[rows, tokens]
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # a token that neither model can give: 0, not inf - inf
        kl = np.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=1)
    for name, values in (("reference", reference_nll), ("target", nll), ("target", kl)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ModelError(
                f"the {name}'s output is not finite at token {position + int(bad[0])}: its weights "
                "are damaged, or its activations overflow float16 (use float32)"
            )
    top, reference_top = _largest(logits), _largest(reference_logits)  # [rows, k]
    shared = (top[:, :, None] == reference_top[:, None, :]).any(axis=1).mean(axis=1)
    same = logits.argmax(axis=1) == reference_logits.argmax(axis=1)
    # Never negative but for the rounding of the sum.
    return Divergence(np.maximum(kl, 0.0), same.astype(np.float64), shared, nll, reference_nll)


def log_softmax(logits: Float32) -> Float64:
    """Log-probabilities of each row, in nats: float64, of the same shape [rows, vocab].

    In float64 throughout: the KL of two near models is a sum of differences that are small beside
    their terms.
    """
    shifted = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite logits give nan, which the caller reports
        shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
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


def _paired(
    first: Iterator[Float32], second: Iterator[Float32]
) -> Iterator[tuple[Float32, Float32]]:
    """The rows of two sources side by side, a few at a time, whatever the sizes of their blocks."""
    ours: Float32 | None = None
    theirs: Float32 | None = None
    while True:
        if ours is None or not len(ours):
            ours = next(first, None)
        if theirs is None or not len(theirs):
            theirs = next(second, None)
        if ours is None or theirs is None:
            assert ours is theirs, "two sources gave different numbers of rows"
            return
        count = min(len(ours), len(theirs), _ROWS)
        yield ours[:count], theirs[:count]
        ours, theirs = ours[count:], theirs[count:]


def _largest(logits: Float32) -> Int64:
    """Ids of the five largest logits of each row, in no order: int64 [rows, 5 or vocab]."""
    count = min(_TOP, logits.shape[1])
    largest: Int64 = np.argpartition(logits, -count, axis=1)[:, -count:]
    return largest
