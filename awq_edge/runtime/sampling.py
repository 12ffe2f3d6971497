"""Choosing the next token from logits: greedy, or drawn from the filtered distribution."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.artifacts.sampling_keys import SamplingKeys
from awq_edge.errors import ArtifactError, ConfigError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

# Candidates that top-p looks at first; a full sort of a 150,000-word vocabulary costs milliseconds.
_TOP_P_CANDIDATES = 256


@dataclass(frozen=True)
class Sampling:
    """Parameters of sampling. The filters apply in this order, as in transformers' generate.

    repetition_penalty: divides the positive logits, multiplies the negative ones, of tokens that
        occurred (Keskar et al. 2019, arXiv 1909.05858); 1 is none.
    temperature: 0 is greedy.
    top_k: keep the k most probable; 0 keeps all.
    top_p: keep the fewest most probable whose probabilities sum to top_p (Holtzman et al. 2020,
        arXiv 1904.09751).
    min_p: keep those with at least min_p times the highest probability.
    seed: None draws one, see `Sampler.seed`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def of(cls, keys: SamplingKeys, seed: int | None = None) -> Sampling:
        """The sampling that the keys ask for; filters that they do not name are off."""
        return cls(**keys.given(), seed=seed)

    def __post_init__(self) -> None:
        """Raises ConfigError naming the parameter that is out of range."""
        ranges: tuple[tuple[str, Any, bool, str], ...] = (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < float("inf"),
                "above 0 (1 is none)",
            ),
            ("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, value, valid, allowed in ranges:
            if not valid:
                raise ConfigError(f"{name} is {value}; it must be {allowed}")


class Sampler:
    """The state of one generation: its random generator and the tokens that occurred."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        # A drawn seed is reported, so that every run can be repeated.
        self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        self._random = np.random.default_rng(self.seed)
        self._seen: set[int] = set()

    def observe(self, ids: list[int]) -> None:
        """Count the context's tokens, for the repetition penalty."""
        if self.sampling.repetition_penalty != 1:
            self._seen.update(ids)

    def choose(self, logits: Float32) -> int:
        """One token id. logits: float32 [vocab], not changed.

        Raises ArtifactError when they are not finite.
        """
        if self._seen:
            logits = self._penalised(logits)
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise ArtifactError(
                f"the model's logits are not finite ({logits[best]} at token {best}): its "
                "activations overflow; export it with float32 (or bfloat16) activations"
            )
        token = best if self.sampling.temperature == 0 else self._draw(logits)
        self.observe([token])
        return token

    def _penalised(self, logits: Float32) -> Float32:
        seen = np.fromiter(self._seen, dtype=np.int64)
        values = logits[seen]
        penalty = np.float32(self.sampling.repetition_penalty)
        changed = logits.copy()
        changed[seen] = np.where(values > 0, values / penalty, values * penalty)
        return changed

    def _draw(self, logits: Float32) -> int:
        ids, probabilities = self.distribution(logits)
        total = probabilities.cumsum()
        index = int(np.searchsorted(total, self._random.random() * total[-1], side="right"))
        return int(ids[min(index, len(ids) - 1)])

    def distribution(self, logits: Float32) -> tuple[Int64, Float64]:
        """Ids that may be drawn and their probabilities, which sum to 1.

        Where top_k or top_p order them, equal logits are ordered by id, so that a seed means the
        same on every machine.
        """
        sampling = self.sampling
        shifted = logits.astype(np.float64) - float(logits.max())
        with np.errstate(over="ignore"):  # a tiny temperature: exp(-inf) is the 0 that is meant
            weights = np.exp(shifted / sampling.temperature)  # [vocab], largest 1
        ids = np.arange(len(logits))
        if sampling.top_k:
            ids = _largest(logits, sampling.top_k)
        if sampling.top_p < 1:
            if not sampling.top_k:
                ids = _largest(logits, _TOP_P_CANDIDATES)
                if weights[ids].sum() < sampling.top_p * weights.sum():
                    ids = _largest(logits, len(logits))
            whole = weights[ids].sum() if sampling.top_k else weights.sum()
            ids = ids[: int(np.searchsorted(weights[ids].cumsum(), sampling.top_p * whole)) + 1]
        if sampling.min_p > 0:
            ids = ids[weights[ids] >= sampling.min_p]
        kept = weights[ids]
        return ids, kept / kept.sum()


def _largest(logits: Float32, count: int) -> Int64:
    """Ids of the `count` largest logits, largest first, equal ones by id."""
    if count < len(logits):
        threshold = np.partition(logits, len(logits) - count)[len(logits) - count]
        ids = np.flatnonzero(logits >= threshold)
    else:
        ids = np.arange(len(logits))
    order = np.argsort(-logits[ids], kind="stable")
    largest: Int64 = ids[order][:count].astype(np.int64)
    return largest
