"""A bench report, and a comparison of two, as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from awq_edge.bench.compare import Comparison, MetricChange
from awq_edge.bench.report import BenchReport, CellReport, ClockReport, PercentilesReport
from awq_edge.run.report import SpreadReport
from awq_edge.units import size_text

_METRICS = {
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "ttft": "TTFT, ms",
    "tpot": "TPOT, ms",
}


def print_bench(report: BenchReport, console: Console) -> None:
    """Print the report: speed, latency, memory and energy by cell, then the machine and the
    plan."""
    for table in (_speed(report), _latency(report), _memory(report)):
        console.print(table)
        console.print()
    if any(cell.energy for cell in report.cells):
        console.print(_energy(report))
        console.print()
    bundle, environment, plan = report.bundle, report.environment, report.plan
    repeats = f"{plan.repeats} repeats behind {plan.warmup} warm-up"
    weights = f"{bundle.bits}-bit {bundle.method}, lm_head {bundle.lm_head_bits}-bit"
    lines = [
        f"{bundle.model_name}: {weights}, {bundle.activation_dtype}, context {plan.context}; "
        f"batch 1, {repeats}, seed {plan.seed}",
        _device_line(report),
        f"power mode: {environment.power_mode or 'unknown'}; {_throttling(report)}",
        *(_clock(clock) for clock in report.clocks),
        *(
            f"no {sensor.name} sensor: {sensor.absent}"
            for sensor in report.sensors
            if sensor.absent
        ),
    ]
    for line in lines:
        console.print(line, soft_wrap=True)
    for note in report.notes[1:]:  # the first is the batch, said above
        console.print(note, style="bold", soft_wrap=True)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the changes, then the other differences between the measurements."""
    table = Table(box=None, pad_edge=False)
    table.add_column("prompt + new", style="bold", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for name in ("before", "after", "change", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for change in comparison.changes:
        table.add_row(*_change(change))
    console.print(table)
    console.print()
    console.print(
        f"better or worse: rank test at {comparison.alpha:g}, and medians that differ by "
        f"{comparison.min_change:.0%} or more",
        soft_wrap=True,
    )
    for peak in comparison.peaks:
        if abs(peak.after - peak.before) >= comparison.min_change * max(peak.before, 1):
            console.print(
                f"peak, {peak.what.replace('_', '-')}, {peak.prompt_tokens} + "
                f"{peak.generated_tokens}: {size_text(peak.before)} -> {size_text(peak.after)}",
                soft_wrap=True,
            )
    for difference in comparison.differences:
        console.print(
            f"{difference.what}: {difference.before} -> {difference.after}", soft_wrap=True
        )
    for where, cells in (("first", comparison.only_before), ("second", comparison.only_after)):
        for prompt, generated in cells:
            console.print(f"{prompt} + {generated}: in the {where} report only")


def _change(change: MetricChange) -> list[str]:
    scale = 1e3 if change.metric in ("ttft", "tpot") else 1.0
    return [
        f"{change.prompt_tokens} + {change.generated_tokens}",
        _METRICS[change.metric],
        f"{change.before * scale:.2f}",
        f"{change.after * scale:.2f}",
        f"{change.change:+.1%}",
        f"{change.p_value:.3f}",
        change.verdict,
    ]


def _speed(report: BenchReport) -> Table:
    table = _by_cell("prefill, tokens/s", "decode, tokens/s", "GB/s", "share", "roofline")
    for cell in report.cells:
        bandwidth = cell.bandwidth
        achieved, share = bandwidth.achieved_bytes_per_second, bandwidth.share_of_device
        roofline = bandwidth.roofline_tokens_per_second
        table.add_row(
            _lengths(cell),
            _spread(cell.prefill),
            _spread(cell.decode),
            "-" if achieved is None else _short(achieved / 1e9),
            "-" if share is None else f"{share:.0%}",
            "-" if roofline is None else _short(roofline),
        )
    return table


def _latency(report: BenchReport) -> Table:
    table = _by_cell("TTFT p50 / p90 / p99, ms", "TPOT p50 / p90 / p99, ms")
    for cell in report.cells:
        table.add_row(_lengths(cell), _percentiles(cell.ttft), _percentiles(cell.tpot))
    return table


def _memory(report: BenchReport) -> Table:
    has_device = any(cell.peak.device is not None for cell in report.cells)
    names = ["peak, anonymous", "file-backed", *(["GPU, in use"] if has_device else [])]
    table = _by_cell(*names)
    for cell in report.cells:
        values = [cell.peak.anonymous, cell.peak.file_backed]
        values += [cell.peak.device] if has_device else []
        table.add_row(_lengths(cell), *map(size_text, values))
    return table


def _energy(report: BenchReport) -> Table:
    table = _by_cell("mJ a prompt token", "mJ a generated one", "W, decode", "of")
    for cell in report.cells:
        for part in cell.energy:
            table.add_row(
                _lengths(cell),
                _scaled(part.joules_per_prompt_token, 1e3),
                _scaled(part.joules_per_generated_token, 1e3),
                _scaled(part.decode_watts, 1.0),
                part.covers,
            )
    return table


def _by_cell(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("prompt + new", style="bold", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=column != "of")
    return table


def _lengths(cell: CellReport) -> str:
    return f"{cell.prompt_tokens} + {cell.generated_tokens}"


def _device_line(report: BenchReport) -> str:
    environment = report.environment
    threads = "" if environment.threads is None else f", {environment.threads} threads"
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    commit = environment.commit or "unknown"
    return f"{environment.device}{threads}; {versions}; commit {commit}"


def _throttling(report: BenchReport) -> str:
    seen = report.throttling
    if not seen.seen:
        watched = seen.events or any(
            sensor.covers for sensor in report.sensors if sensor.name != "rapl"
        )
        return "no throttling seen" if watched else "nothing here tells of throttling"
    reasons = [f"{name} in {count} of {seen.samples}" for name, count in seen.reasons.items()]
    events = [f"{name} +{count}" for name, count in seen.events.items() if count]
    return f"throttling seen: {', '.join([*reasons, *events])}"


def _clock(clock: ClockReport) -> str:
    before, after = ("-" if hz is None else f"{hz / 1e6:.0f}" for hz in (clock.before, clock.after))
    return (
        f"clock of {clock.name}: {before} MHz before, {after} after, "
        f"{clock.lowest / 1e6:.0f} to {clock.highest / 1e6:.0f} in between"
    )


def _spread(spread: SpreadReport | None) -> str:
    if spread is None:
        return "-"
    return f"{_short(spread.median)} ({_short(spread.p10)}..{_short(spread.p90)})"


def _short(rate: float) -> str:
    """Three digits or more: the table fits a terminal of 80 columns."""
    return f"{rate:.0f}" if rate >= 1000 else f"{rate:.1f}" if rate >= 100 else f"{rate:.2f}"


def _percentiles(part: PercentilesReport | None) -> str:
    if part is None:
        return "-"
    return " / ".join(f"{seconds * 1e3:.2f}" for seconds in (part.p50, part.p90, part.p99))


def _scaled(value: float | None, factor: float) -> str:
    return "-" if value is None else f"{value * factor:.2f}"
