"""Time and throughput of one generation, in the field's terms.

TTFT: time to first token, from the request to the first sampled token, tokenization included.
TPOT: time per output token: one decode step with its sampling, the first token excluded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Decode steps that count as warm-up: the first ones page in weights and KV cache.
WARMUP_STEPS = 2


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile of `count` values."""

    median: float
    p10: float
    p90: float
    count: int


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of times, in seconds."""

    p50: float
    p90: float
    p95: float
    p99: float


@dataclass
class Timings:
    """Times of one generation, as the token loop measured them.

    chunks: (tokens, seconds) of every prefill execution.
    steps: seconds of every decode step with its sampling.
    ttft: seconds, None when no token came.
    total: seconds of the whole request.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    chunks: list[tuple[int, float]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    ttft: float | None = None
    total: float = 0.0

    @property
    def measured_steps(self) -> list[float]:
        """The decode steps after the warm-up; all of them when there are no more."""
        return self.steps[WARMUP_STEPS:] or self.steps

    @property
    def prefill_seconds(self) -> float:
        return sum(seconds for _, seconds in self.chunks)

    @property
    def prefill_tokens_per_second(self) -> Spread | None:
        """Prefill throughput over the chunks of full size: a short last one is slower by nature.
        The first counts as warm-up when there are at least three."""
        size = max((tokens for tokens, _ in self.chunks), default=0)
        rates = [tokens / seconds for tokens, seconds in self.chunks if tokens == size]
        return spread(rates[1:] if len(rates) > 2 else rates)

    @property
    def decode_tokens_per_second(self) -> Spread | None:
        return spread([1.0 / seconds for seconds in self.measured_steps])

    @property
    def tpot(self) -> Percentiles | None:
        """Percentiles of the decode steps after the warm-up."""
        return percentiles(self.measured_steps)


def spread(values: list[float]) -> Spread | None:
    """Median and percentiles of `values`; None if there are none."""
    if not values:
        return None
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return Spread(float(median), float(p10), float(p90), len(values))


def percentiles(seconds: list[float]) -> Percentiles | None:
    """Percentiles of times, linear between neighbours; None if there are none."""
    if not seconds:
        return None
    return Percentiles(*(float(value) for value in np.percentile(seconds, [50, 90, 95, 99])))
