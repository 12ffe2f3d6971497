"""What counts as a change: the rank test against known values, the rule, what else differs."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_edge.bench.compare import Comparison, compare, verdict_of
from awq_edge.bench.plan import Cell, Plan
from awq_edge.bench.rank_test import rank_sum_p_value, smallest_p_value
from awq_edge.bench.report import BenchReport

from .timed import Clock, TimedSession, report_of

SAMPLES = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    [
        ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], smallest_p_value(5, 5)),
        ([1, 2, 3, 4], [6, 7, 8, 9, 10, 11], smallest_p_value(4, 6)),
        ([6, 7, 8, 9, 10], [1, 2, 3, 4, 5], 2 / 252),
        # One value among the others: 1 and 2 of 252 divisions are as extreme, on either side.
        ([1, 2, 3, 4, 6], [5, 7, 8, 9, 10], 4 / 252),
        ([1.0], [2.0], 1.0),
        ([3.0, 3.0], [3.0, 3.0, 3.0], 1.0),
        ([], [1.0], 1.0),
    ],
)
def test_p_values_of_the_tables(first: list[float], second: list[float], p_value: float) -> None:
    assert rank_sum_p_value(first, second) == pytest.approx(p_value)


@settings(max_examples=60, deadline=None)
@given(SAMPLES, SAMPLES)
def test_p_values_with_ties_by_enumeration(first: list[float], second: list[float]) -> None:
    """All divisions of the pooled values, by the difference of their mean ranks from even."""
    pooled = first + second
    order = sorted(pooled)
    rank = {v: order.index(v) + (order.count(v) + 1) / 2 for v in pooled}
    even = len(first) * (len(pooled) + 1) / 2
    sums = [
        abs(sum(rank[pooled[i]] for i in chosen) - even)
        for chosen in itertools.combinations(range(len(pooled)), len(first))
    ]
    observed = abs(sum(rank[v] for v in first) - even)
    expected = sum(s >= observed - 1e-9 for s in sums) / len(sums)
    assert rank_sum_p_value(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([10, 11, 12, 13, 14], [20, 21, 22, 23, 24], "better"),
        ([20, 21, 22, 23, 24], [10, 11, 12, 13, 14], "worse"),
        ([10, 11, 12, 13, 14], [13.5, 15, 16, 17, 18], "unchanged"),  # they overlap
        ([100, 100.1, 100.2, 100.3, 100.4], [101, 101.1, 101.2, 101.3, 101.4], "unchanged"),
        ([10, 11, 12, 13], [20, 21, 22, 23], "too few repeats"),
    ],
)
def test_the_rule(before: list[float], after: list[float], verdict: str) -> None:
    assert verdict_of(before, after, more_is_better=True)[0] == verdict
    flipped = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert verdict_of(before, after, more_is_better=False)[0] == flipped


@pytest.fixture(scope="module")
def pair(tiny_bundle: Path) -> tuple[BenchReport, BenchReport]:
    """Decode half as fast in the second, prefill the same; one cell is in the first alone."""

    def report(steps: tuple[float, ...], cells: tuple[Cell, ...]) -> BenchReport:
        clock = Clock()
        session = TimedSession(clock, per_token=0.25, steps=steps)
        plan = Plan(cells, warmup=0, repeats=5)
        return report_of(tiny_bundle, clock=clock, session=session, plan=plan)

    return report((0.5,), (Cell(4, 6), Cell(16, 6))), report((1.0,), (Cell(4, 6),))


def found(comparison: Comparison) -> dict[str, str]:
    return {change.metric: change.verdict for change in comparison.changes}


def test_reports_are_compared_cell_by_cell(pair: tuple[BenchReport, BenchReport]) -> None:
    before, after = pair
    comparison = compare(before, after)
    assert found(comparison) == {
        "prefill_tokens_per_second": "unchanged",
        "decode_tokens_per_second": "worse",
        "ttft": "unchanged",
        "tpot": "worse",
    }
    decode = comparison.changes[1]
    assert (decode.before, decode.after, decode.change) == (2.0, 1.0, -0.5)
    assert decode.p_value == pytest.approx(2 / 252) and decode.repeats == (5, 5)
    assert len(comparison.regressions) == 2
    assert comparison.only_before == ((16, 6),) and comparison.only_after == ()
    assert compare(after, before).regressions == ()
    assert set(found(compare(before, before)).values()) == {"unchanged"}
    assert statistics.median([decode.before]) == 2.0
    assert {peak.what for peak in comparison.peaks} == {"anonymous", "file_backed"}


def test_what_else_differs_is_told(pair: tuple[BenchReport, BenchReport]) -> None:
    report, _ = pair
    assert compare(report, report).differences == ()
    versions = {**report.environment.versions, "onnxruntime": "0.0", "extra": "1"}
    environment = report.environment.model_copy(
        update={"device": "another", "power_mode": "nvpmodel 7W", "versions": versions}
    )
    changed = {"manifest_sha256": "f" * 64, "environment": environment, "interrupted": True}
    quiet = tuple(cell.model_copy(update={"others": 0.05}) for cell in report.cells)
    other = report.model_copy(update={**changed, "cells": quiet})
    differences = {one.what: (one.before, one.after) for one in compare(report, other).differences}
    assert differences["bundle (sha256 of its manifest)"][1] == "f" * 64
    assert differences["device"][1] == "another"
    assert differences["power mode"] == ("nvpmodel 15W, governor schedutil", "nvpmodel 7W")
    assert differences["complete"] == ("yes", "no, interrupted")
    assert differences["version of onnxruntime"][1] == "0.0"
    assert differences["version of extra"] == ("none", "1")
    assert differences["other processes, of the CPUs"] == ("75%", "5%")
    assert len(differences) == 7
