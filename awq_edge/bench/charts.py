"""The charts of the bench page: from a report to SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from awq_edge.bench.report import BenchReport, CellReport, SampleReport
from awq_edge.html.charts import Line, Mark, Role, panels
from awq_edge.runtime.metrics import WARMUP_STEPS

_POINTS = 200  # of a distribution
_HEIGHT = 2.6
_MOST_PANELS = 16


def speed_chart(report: BenchReport) -> str | None:
    """Tokens/s by context: decode at its mean position against the roofline, a panel for each
    generated length. None where nothing was decoded."""
    if all(cell.decode is None for cell in report.cells):
        return None

    def lines(cells: Sequence[CellReport]) -> list[Line]:
        decoding = [cell for cell in cells if cell.decode is not None]
        x = [_mean_position(cell) for cell in decoding]
        spreads = [cell.decode for cell in decoding if cell.decode is not None]
        roof = [cell.bandwidth.roofline_tokens_per_second for cell in decoding]
        curves = [
            Line(
                x,
                [spread.median for spread in spreads],
                "series",
                band=([spread.p10 for spread in spreads], [spread.p90 for spread in spreads]),
            )
        ]
        known = [value for value in roof if value is not None]
        if known and len(known) == len(roof):
            curves.append(Line(x, known, "base", dash="dashed"))
        return curves

    return _by_generated(
        report, lines, "speed", "Decode, tokens per second, by context", "tokens/s"
    )


def prefill_chart(report: BenchReport) -> str:
    """Prefill tokens/s by prompt length."""

    def lines(cells: Sequence[CellReport]) -> list[Line]:
        return [
            Line(
                [cell.prompt_tokens for cell in cells],
                [cell.prefill.median for cell in cells],
                "other",
                band=([cell.prefill.p10 for cell in cells], [cell.prefill.p90 for cell in cells]),
            )
        ]

    return _by_generated(
        report,
        lines,
        "prefill",
        "Prefill, tokens per second, by prompt length",
        "tokens/s",
        x_label="prompt, tokens",
    )


def roofline_chart(report: BenchReport) -> str | None:
    """Achieved GB/s by context against the memory's bandwidth; None where either is not known."""
    device = next((cell.bandwidth.device_bytes_per_second for cell in report.cells), None)
    decoding = [c for c in report.cells if c.bandwidth.achieved_bytes_per_second is not None]
    if device is None or not decoding:
        return None

    def lines(cells: Sequence[CellReport]) -> list[Line]:
        known = [c for c in cells if c.bandwidth.achieved_bytes_per_second is not None]
        x = [_mean_position(cell) for cell in known]
        achieved = [(c.bandwidth.achieved_bytes_per_second or 0.0) / 1e9 for c in known]
        return [
            Line(x, [device / 1e9] * len(x), "base", dash="dashed"),
            Line(x, achieved, "series"),
        ]

    return _by_generated(
        report, lines, "roofline", "Bytes read per second by context, and the memory's", "GB/s"
    )


def latency_chart(report: BenchReport) -> str | None:
    """The distribution of decode steps, a panel for each cell: the share of steps that took at most
    so long, with p50, p90 and p99 marked. None where nothing was decoded."""
    cells = [cell for cell in report.cells if cell.tpot is not None][:_MOST_PANELS]
    if not cells:
        return None
    lines: list[list[Line]] = []
    marks: list[list[Mark]] = []
    for cell in cells:
        steps = sorted(
            s * 1e3 for repeat in cell.repeats for s in repeat.steps[WARMUP_STEPS:] or repeat.steps
        )
        stride = max(1, len(steps) // _POINTS)
        numbers = sorted({*range(0, len(steps), stride), len(steps) - 1})
        x = [steps[number] for number in numbers]
        y = [100 * (number + 1) / len(steps) for number in numbers]
        lines.append([Line(x, y, "series")])
        assert cell.tpot is not None  # chosen above
        latencies = {50: cell.tpot.p50, 90: cell.tpot.p90, 99: cell.tpot.p99}
        marks.append(
            [
                Mark(s * 1e3, share, "disc", "other", f"p{share}: {s * 1e3:.2f} ms")
                for share, s in latencies.items()
            ]
        )
    return panels(
        [f"{cell.prompt_tokens} + {cell.generated_tokens}" for cell in cells],
        lines,
        marks,
        key="latency",
        label="Distribution of the time of a decode step for each pair of lengths",
        x_label="ms",
        y_label="% of steps",
        y_range=(0, 104),
        columns=min(4, len(cells)),
        whole_x=False,
    )


def memory_chart(report: BenchReport) -> str | None:
    """Memory over time, MB; None where the system does not tell."""
    kinds: tuple[tuple[Role, Callable[[SampleReport], int | None]], ...] = (
        ("series", lambda sample: sample.anonymous),
        ("base", lambda sample: sample.file_backed),
        ("other", lambda sample: sample.device),
    )
    lines: list[Line] = []
    for role, value in kinds:
        points = [(sample.time, value(sample)) for sample in report.memory_samples]
        known = [(when, size / 1e6) for when, size in points if size is not None]
        if known:
            x, y = [when for when, _ in known], [size for _, size in known]
            lines.append(Line(x, y, role, dash="dashed" if role == "base" else "solid"))
    if not lines:
        return None
    highest = max(max(line.y) for line in lines)
    return panels(
        [""],
        [lines],
        [[]],
        key="memory",
        label="Memory over time in MB: anonymous, file-backed and on the GPU",
        x_label="seconds",
        y_label="MB",
        y_range=(0, 1.05 * highest),
        columns=1,
        panel_height=_HEIGHT,
        whole_x=False,
    )


def _by_generated(
    report: BenchReport,
    lines: Callable[[Sequence[CellReport]], list[Line]],
    key: str,
    label: str,
    y_label: str,
    x_label: str = "context, tokens",
) -> str:
    """A panel for each generated length."""
    lengths = report.plan.generated_lengths
    groups = [
        sorted(
            (cell for cell in report.cells if cell.generated_tokens == length),
            key=lambda cell: cell.prompt_tokens,
        )
        for length in lengths
    ]
    drawn = [(length, lines(group)) for length, group in zip(lengths, groups, strict=True) if group]
    highest = max(
        max((*line.y, *(line.band[1] if line.band else ())), default=0.0)
        for _, panel in drawn
        for line in panel
    )
    marks = [
        [_tipped(line, index, y_label) for line in panel for index in range(len(line.x))]
        for _, panel in drawn
    ]
    return panels(
        [f"{length} generated" for length, _ in drawn],
        [panel for _, panel in drawn],
        marks,
        key=key,
        label=label,
        x_label=x_label,
        y_label=y_label,
        y_range=(0, 1.08 * highest) if highest else None,
        columns=min(3, len(drawn)),
        panel_height=_HEIGHT,
    )


def _tipped(line: Line, index: int, unit: str) -> Mark:
    x, y = line.x[index], line.y[index]
    return Mark(x, y, "disc", line.role, f"{x:.0f} tokens: {y:.2f} {unit}")


def _mean_position(cell: CellReport) -> float:
    """Filled positions of the KV cache, at the mean of the decode steps."""
    return cell.prompt_tokens + cell.generated_tokens / 2
