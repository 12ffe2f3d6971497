"""The bench page: its figures are the report's, it needs nothing, and works without matplotlib."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_edge.bench.page import bench_page
from awq_edge.bench.plan import Cell, Plan
from awq_edge.bench.report import BenchReport, ThrottlingReport
from awq_edge.bench.table_csv import to_csv
from tests.html.html_page import Page

HOSTILE = "</title><script src=http://x>alert('1')</script>\"&$x^{$\\frac<b>"
SPEED = "Decode, tokens per second, by context"
LATENCY = "Distribution of the time of a decode step for each pair of lengths"
MEMORY = "Memory over time in MB: anonymous, file-backed and on the GPU"
ROOFLINE = "Bytes read per second by context, and the memory's"
PREFILL = "Prefill, tokens per second, by prompt length"


@pytest.fixture(scope="module")
def report(tiny_bundle: Path) -> BenchReport:
    from awq_edge.sensors.reading import Reading
    from tests.bench.timed import Clock, FakeSensor, TimedSession, monitor_of, report_of

    clock = Clock()
    sensor = FakeSensor("card", clock, lambda now: Reading(power=10.0, memory_used=7_000_000))
    return report_of(
        tiny_bundle,
        clock=clock,
        session=TimedSession(clock, steps=(0.5, 0.25)),
        monitor=monitor_of(clock, sensor),
        plan=Plan((Cell(4, 6), Cell(16, 6), Cell(4, 12)), repeats=2),
    )


def test_tables_and_charts_are_the_reports(report: BenchReport) -> None:
    text = bench_page(report)
    page = Page(text)
    assert page.links == []
    assert set(page.targets) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.headings[0] == report.bundle.model_name
    assert set(page.tips) == {SPEED, LATENCY, MEMORY, ROOFLINE, PREFILL}
    for cell, row in zip(report.cells, page.tables["speed"][1:], strict=True):
        assert cell.decode is not None
        assert row[:3] == [
            str(cell.prompt_tokens),
            str(cell.generated_tokens),
            f"{cell.prefill.median:.2f}",
        ]
        assert row[4] == f"{cell.decode.median:.2f}"
        tip = f"{cell.prompt_tokens} tokens: {cell.prefill.median:.2f} tokens/s"
        assert tip in page.tips[PREFILL]
    assert len(page.tables["energy"]) == len(page.tables["memory"]) == 1 + len(report.cells)
    assert page.tables["memory"][1][-1] == "7.0 MB"
    assert {"p50: 375.00 ms", "p99: 500.00 ms"} <= set(page.tips[LATENCY])
    assert dict(page.tables["facts"])["bundle's manifest, sha256"] == report.manifest_sha256
    assert "awq-edge bench page" not in text
    assert bench_page(report) == text


def test_without_matplotlib_there_are_tables_and_advice(report: BenchReport) -> None:
    page = Page(bench_page(report, draw=False))
    assert page.tips == {}
    assert "awq-edge bench page FILE.json --html FILE" in page.source
    assert set(page.tables) == {"speed", "roofline", "latency", "memory", "energy", "facts"}


def test_hostile_names_stay_text(report: BenchReport) -> None:
    bundle = report.bundle.model_copy(update={"model_name": HOSTILE})
    page = Page(bench_page(report.model_copy(update={"bundle": bundle}), draw=False))
    assert page.headings[0] == HOSTILE
    assert "script" not in page.tags


def test_what_spoils_a_measurement_is_said_at_the_top(report: BenchReport) -> None:
    throttling = ThrottlingReport(samples=10, reasons={"power cap": 3}, events={"OC1 events": 2})
    hot = report.model_copy(update={"throttling": throttling, "interrupted": True})
    text = bench_page(hot, draw=False)
    assert "Throttled meanwhile: power cap (3 of 10 samples), OC1 events +2." in text
    assert "other processes took" in text


def test_a_report_of_nothing_but_prefill(tiny_bundle: Path) -> None:
    from tests.bench.timed import report_of

    bare = report_of(tiny_bundle, plan=Plan((Cell(4, 1),), repeats=1), bandwidth=None)
    page = Page(bench_page(bare))
    assert set(page.tips) == {PREFILL, MEMORY}
    assert page.tables["speed"][1][4] == "-"


def test_csv_has_a_row_a_cell(report: BenchReport) -> None:
    import csv
    import io

    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(rows) == len(report.cells)
    for cell, row in zip(report.cells, rows, strict=True):
        assert cell.tpot is not None
        assert int(row["prompt_tokens"]) == cell.prompt_tokens
        assert float(row["tpot_seconds_p99"]) == cell.tpot.p99
        assert float(row["share_of_device"]) == cell.bandwidth.share_of_device
        assert float(row["card_joules_per_generated_token"]) == pytest.approx(
            cell.energy[0].joules_per_generated_token or 0
        )
        assert row["peak_device_bytes"] == "7000000"
