"""The page of a bench report: self-contained, styles and charts are in it, nothing is loaded.

Tables need the base install alone. Charts are drawn where matplotlib is (extra [host]); elsewhere
the page says how to have them drawn from the JSON.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from awq_edge.bench.report import BenchReport, CellReport
from awq_edge.html.page import Tile, render
from awq_edge.units import size_text

_NO_CHARTS = (
    "Plots are drawn where matplotlib is installed: copy the JSON there and run "
    "`awq-edge bench page FILE.json --html FILE`."
)
_CHARTS = ("speed_chart", "prefill_chart", "roofline_chart", "latency_chart", "memory_chart")


def bench_page(report: BenchReport, *, draw: bool | None = None) -> str:
    """The page of a report, as HTML. The same report gives the same text.

    draw: draw charts; default: where matplotlib is installed.
    """
    if draw is None:
        draw = importlib.util.find_spec("matplotlib") is not None
    bundle, cells = report.bundle, report.cells
    has_device = any(cell.peak.device is not None for cell in cells)
    values: dict[str, Any] = {
        "model_name": bundle.model_name,
        "lead": f"{bundle.model_type}, {bundle.bits}-bit {bundle.method}, runtime {bundle.runtime},"
        f" on {report.environment.device}: one sequence at a time, {report.plan.repeats} repeats.",
        "warnings": list(_warnings(report)),
        "tiles": list(_tiles(report)),
        "charts_missing": "" if draw else _NO_CHARTS,
        "repeats": report.plan.repeats,
        "has_device": has_device,
        "speed": [_speed_row(cell) for cell in cells],
        "roofline": [_roofline_row(cell) for cell in cells],
        "latency": [_latency_row(cell) for cell in cells],
        "memory": [_memory_row(cell, has_device) for cell in cells],
        "energy": [row for cell in cells for row in _energy_rows(cell)],
        "facts": [(name, value) for name, value in _facts(report) if value],
        **_charts(report, draw),
    }
    return render("bench.html", values)


def _charts(report: BenchReport, draw: bool) -> dict[str, Any]:
    if not draw:
        return dict.fromkeys(_CHARTS, "")
    from markupsafe import Markup

    from awq_edge.bench import charts as bench_charts

    return {name: Markup(getattr(bench_charts, name)(report) or "") for name in _CHARTS}


def _warnings(report: BenchReport) -> Iterator[str]:
    yield from report.notes[1:]  # the first is the batch, said above
    seen = report.throttling
    if seen.seen:
        reasons = [
            f"{name} ({count} of {seen.samples} samples)" for name, count in seen.reasons.items()
        ]
        events = [f"{name} +{count}" for name, count in seen.events.items() if count]
        yield f"Throttled meanwhile: {', '.join([*reasons, *events])}."


def _tiles(report: BenchReport) -> Iterator[Tile]:
    decoding = [cell for cell in report.cells if cell.decode is not None]
    if decoding:
        best = max(decoding, key=lambda cell: cell.decode.median if cell.decode else 0.0)
        assert best.decode is not None and best.tpot is not None  # chosen above
        yield Tile("Decode, tokens/s", f"{best.decode.median:,.1f}", f"at {_name(best)}")
        share = best.bandwidth.share_of_device
        if share is not None:
            yield Tile("Share of the roofline", f"{share:.0%}", f"at {_name(best)}")
        yield Tile("TPOT, p99", f"{best.tpot.p99 * 1e3:.2f} ms", f"at {_name(best)}")
    fastest = max(report.cells, key=lambda cell: cell.prefill.median)
    yield Tile("Prefill, tokens/s", f"{fastest.prefill.median:,.0f}", f"at {_name(fastest)}")
    peaks = [cell.peak.anonymous for cell in report.cells if cell.peak.anonymous is not None]
    if peaks:
        yield Tile("Peak, anonymous", size_text(max(peaks)), "of the process")
    devices = [cell.peak.device for cell in report.cells if cell.peak.device is not None]
    if devices:
        yield Tile("Peak on the GPU", size_text(max(devices)), "of all programs")
    for cell in decoding[:1]:
        for part in cell.energy:
            if part.joules_per_generated_token is not None:
                value = f"{part.joules_per_generated_token * 1e3:.1f} mJ"
                yield Tile("Energy a token", value, f"{part.covers}, at {_name(cell)}")


def _name(cell: CellReport) -> str:
    return f"{cell.prompt_tokens} + {cell.generated_tokens} tokens"


def _speed_row(cell: CellReport) -> list[str]:
    decode, roofline = cell.decode, cell.bandwidth.roofline_tokens_per_second
    return [
        *_lengths(cell),
        f"{cell.prefill.median:.2f}",
        f"{cell.prefill.p10:.2f} to {cell.prefill.p90:.2f}",
        "-" if decode is None else f"{decode.median:.2f}",
        "-" if decode is None else f"{decode.p10:.2f} to {decode.p90:.2f}",
        _number(roofline),
    ]


def _roofline_row(cell: CellReport) -> list[str]:
    bandwidth = cell.bandwidth
    share = bandwidth.share_of_device
    return [
        *_lengths(cell),
        f"{bandwidth.weight_bytes_per_token / 1e6:,.2f}",
        f"{bandwidth.kv_bytes_per_token / 1e6:,.2f}",
        _number(bandwidth.achieved_bytes_per_second, 1e-9),
        _number(bandwidth.device_bytes_per_second, 1e-9),
        "-" if share is None else f"{share:.1%}",
    ]


def _latency_row(cell: CellReport) -> list[str]:
    row = _lengths(cell)
    for part in (cell.ttft, cell.tpot):
        values = (None,) * 3 if part is None else (part.p50, part.p90, part.p99)
        row += [_number(value, 1e3) for value in values]
    return row


def _memory_row(cell: CellReport, has_device: bool) -> list[str]:
    sizes = [cell.peak.anonymous, cell.peak.file_backed, *([cell.peak.device] * has_device)]
    return [
        *_lengths(cell),
        *map(size_text, sizes),
    ]


def _energy_rows(cell: CellReport) -> Iterator[list[str]]:
    for part in cell.energy:
        yield [
            *_lengths(cell),
            _number(part.joules_per_prompt_token, 1e3),
            _number(part.joules_per_generated_token, 1e3),
            _number(part.prefill_watts),
            _number(part.decode_watts),
            part.covers,
        ]


def _lengths(cell: CellReport) -> list[str]:
    return [f"{cell.prompt_tokens:,}", f"{cell.generated_tokens:,}"]


def _number(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:,.2f}"


def _facts(report: BenchReport) -> Iterator[tuple[str, str]]:
    bundle, plan, environment = report.bundle, report.plan, report.environment
    yield "model", f"{bundle.model_name} ({bundle.model_type})"
    yield (
        "weights",
        f"{bundle.bits}-bit {bundle.method}, groups of {bundle.group_size}, {bundle.scheme}, "
        f"lm_head {bundle.lm_head_bits}-bit",
    )
    yield "activations", bundle.activation_dtype
    yield "bundle's manifest, sha256", report.manifest_sha256
    yield "context", f"{plan.context:,} positions"
    yield (
        "requests",
        f"{plan.warmup} warm-up rounds and {plan.repeats} that count over all pairs of lengths, "
        "greedy, not ended by EOS, batch 1",
    )
    yield "prompts", f"ids drawn with seed {plan.seed}, sha256 {plan.prompt_sha256}"
    threads = "" if environment.threads is None else f", {environment.threads} threads"
    yield "device", f"{environment.device}{threads}, {environment.architecture}"
    yield "power mode", environment.power_mode or "unknown"
    for clock in report.clocks:
        yield (
            f"clock, {clock.name}",
            f"{_number(clock.before, 1e-6)} MHz before, {_number(clock.after, 1e-6)} after; "
            f"{clock.lowest / 1e6:,.0f} to {clock.highest / 1e6:,.0f} meanwhile",
        )
    for sensor in report.sensors:
        yield f"sensor {sensor.name}", sensor.covers or f"none: {sensor.absent}"
    yield "made", environment.time
    versions = environment.versions.items()
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions)
    yield "commit", environment.commit or "unknown"
