"""Log-probabilities of generated tokens: the model's own, before temperature, filters and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenLogprobs:
    """One generated token."""

    token_id: int
    logprob: float  # natural logarithm of its probability
    # the likeliest ids at its place with their logprobs, likeliest first, equal ones by id
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Float32, token_id: int, top: int) -> TokenLogprobs:
    """Log-probabilities of one token and its likeliest alternatives.

    logits: float32 [vocab].
    top: the number of alternatives.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    logprobs = shifted - np.log(np.exp(shifted).sum())  # [vocab]
    top = min(top, len(logits))
    likeliest = np.empty(0, dtype=np.int64)
    if top:
        threshold = np.partition(logits, len(logits) - top)[len(logits) - top]
        likeliest = np.flatnonzero(logits >= threshold)
        likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")][:top]
    return TokenLogprobs(
        token_id, float(logprobs[token_id]), tuple((int(i), float(logprobs[i])) for i in likeliest)
    )
