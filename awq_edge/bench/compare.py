"""Changes between two measurements, with a test whether they exceed the measurements' spread.

The rule. The repeats of a cell are a few values (five by default) of an unknown, skewed
distribution: a mean and its standard error say little, a rank test needs no shape. A metric has
changed when both hold:

* the exact two-sided Mann-Whitney test rejects "the same distribution" at ALPHA. At 0.01, five
  repeats against five reject only where no value of one lies among the other's; with fewer than
  five against five nothing could, and the verdict is "too few repeats";
* the medians differ by MIN_CHANGE or more. Repeats of one process share the causes that differ from
  process to process (the place of memory, the other programs' share of the machine), which no test
  within processes sees.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from awq_edge.artifacts.schema import Manifest, Record
from awq_edge.bench.build import OTHERS_LIMIT
from awq_edge.bench.rank_test import rank_sum_p_value, smallest_p_value
from awq_edge.bench.report import BenchReport, CellReport, RepeatReport

ALPHA = 0.01
MIN_CHANGE = 0.02

Verdict = Literal["better", "worse", "unchanged", "too few repeats"]
Metric = Literal["prefill_tokens_per_second", "decode_tokens_per_second", "ttft", "tpot"]


class MetricChange(Record):
    """One metric of one cell."""

    prompt_tokens: int
    generated_tokens: int
    metric: Metric
    # before, after: medians of the repeats, tokens/s or seconds
    before: float
    after: float
    change: float  # after / before - 1
    p_value: float  # of the rank test
    repeats: tuple[int, int]
    verdict: Verdict


class PeakChange(Record):
    """Peak memory of one cell, bytes: one value a measurement, so there is no verdict on it."""

    prompt_tokens: int
    generated_tokens: int
    what: Literal["anonymous", "file_backed", "device"]
    before: int
    after: int


class Difference(Record):
    """A setting or fact that differs between the measurements."""

    what: str
    before: str
    after: str


class Comparison(Manifest):
    """Two bench reports side by side."""

    format: Literal["awq-edge-bench-comparison"] = "awq-edge-bench-comparison"
    format_version: Literal[1] = 1
    alpha: float
    min_change: float
    changes: tuple[MetricChange, ...]
    peaks: tuple[PeakChange, ...]
    differences: tuple[Difference, ...]  # between the measured settings and machines
    # only_before, only_after: cells (prompt and generated tokens) that the other report lacks
    only_before: tuple[tuple[int, int], ...]
    only_after: tuple[tuple[int, int], ...]

    @property
    def regressions(self) -> tuple[MetricChange, ...]:
        """Metrics that became worse."""
        return tuple(change for change in self.changes if change.verdict == "worse")


@dataclass(frozen=True)
class _Measure:
    metric: Metric
    value: Callable[[RepeatReport], float | None]
    more_is_better: bool


_MEASURES = (
    _Measure("prefill_tokens_per_second", lambda repeat: repeat.prefill_tokens_per_second, True),
    _Measure("decode_tokens_per_second", lambda repeat: repeat.decode_tokens_per_second, True),
    _Measure("ttft", lambda repeat: repeat.ttft, False),
    _Measure("tpot", lambda repeat: repeat.tpot, False),
)


def compare(
    before: BenchReport,
    after: BenchReport,
    *,
    alpha: float = ALPHA,
    min_change: float = MIN_CHANGE,
) -> Comparison:
    """The changes from one report to another, cell by cell, by the rule above."""
    old, new = _by_lengths(before), _by_lengths(after)
    shared = [lengths for lengths in old if lengths in new]
    return Comparison(
        alpha=alpha,
        min_change=min_change,
        changes=tuple(
            change
            for lengths in shared
            for change in _changes(old[lengths], new[lengths], alpha, min_change)
        ),
        peaks=tuple(peak for lengths in shared for peak in _peaks(old[lengths], new[lengths])),
        differences=tuple(_differences(before, after)),
        only_before=tuple(lengths for lengths in old if lengths not in new),
        only_after=tuple(lengths for lengths in new if lengths not in old),
    )


def verdict_of(
    before: Sequence[float],
    after: Sequence[float],
    *,
    more_is_better: bool,
    alpha: float = ALPHA,
    min_change: float = MIN_CHANGE,
) -> tuple[Verdict, float]:
    """The verdict on two samples of a metric, and the p-value of the rank test."""
    p_value = rank_sum_p_value(before, after)
    if smallest_p_value(len(before), len(after)) > alpha:
        return "too few repeats", p_value
    change = statistics.median(after) / statistics.median(before) - 1
    if p_value > alpha or abs(change) < min_change:
        return "unchanged", p_value
    return ("better" if (change > 0) == more_is_better else "worse"), p_value


def _by_lengths(report: BenchReport) -> dict[tuple[int, int], CellReport]:
    return {(cell.prompt_tokens, cell.generated_tokens): cell for cell in report.cells}


def _changes(
    before: CellReport, after: CellReport, alpha: float, min_change: float
) -> Iterator[MetricChange]:
    for measure in _MEASURES:
        old, new = (
            [value for value in map(measure.value, cell.repeats) if value is not None]
            for cell in (before, after)
        )
        if not old or not new:
            continue
        verdict, p_value = verdict_of(
            old, new, more_is_better=measure.more_is_better, alpha=alpha, min_change=min_change
        )
        yield MetricChange(
            prompt_tokens=before.prompt_tokens,
            generated_tokens=before.generated_tokens,
            metric=measure.metric,
            before=statistics.median(old),
            after=statistics.median(new),
            change=statistics.median(new) / statistics.median(old) - 1,
            p_value=p_value,
            repeats=(len(old), len(new)),
            verdict=verdict,
        )


def _peaks(before: CellReport, after: CellReport) -> Iterator[PeakChange]:
    kinds: tuple[Literal["anonymous", "file_backed", "device"], ...] = (
        "anonymous",
        "file_backed",
        "device",
    )
    for what in kinds:
        old, new = getattr(before.peak, what), getattr(after.peak, what)
        if old is not None and new is not None:
            yield PeakChange(
                prompt_tokens=before.prompt_tokens,
                generated_tokens=before.generated_tokens,
                what=what,
                before=old,
                after=new,
            )


def _differences(before: BenchReport, after: BenchReport) -> Iterator[Difference]:
    for (what, old), (_, new) in zip(_facts(before), _facts(after), strict=True):
        if old != new:
            yield Difference(what=what, before=old, after=new)
    loads = _load(before), _load(after)
    if loads[0] is not None and loads[1] is not None and abs(loads[1] - loads[0]) > OTHERS_LIMIT:
        yield Difference(
            what="other processes, of the CPUs", before=f"{loads[0]:.0%}", after=f"{loads[1]:.0%}"
        )
    old_versions, new_versions = before.environment.versions, after.environment.versions
    for name in sorted({*old_versions, *new_versions}):
        old, new = old_versions.get(name, "none"), new_versions.get(name, "none")
        if old != new:
            yield Difference(what=f"version of {name}", before=old, after=new)


def _facts(report: BenchReport) -> Iterator[tuple[str, str]]:
    bundle, plan, environment = report.bundle, report.plan, report.environment
    yield "bundle (sha256 of its manifest)", report.manifest_sha256
    yield "model", bundle.model_name
    yield "runtime", bundle.runtime
    yield "weights", f"{bundle.bits}-bit {bundle.method}, group {bundle.group_size}"
    yield "backend", environment.backend
    yield "device", environment.device
    yield "threads", str(environment.threads)
    yield "power mode", environment.power_mode or "unknown"
    yield "throttling", "seen" if report.throttling.seen else "not seen"
    yield "context", str(plan.context)
    yield "prompts (seed)", str(plan.seed)
    yield "warm-up rounds", str(plan.warmup)
    yield "awq-edge commit", environment.commit or "unknown"
    yield "complete", "no, interrupted" if report.interrupted else "yes"


def _load(report: BenchReport) -> float | None:
    """The largest share of the CPUs that other processes took, over the cells."""
    return max((cell.others for cell in report.cells if cell.others is not None), default=None)
