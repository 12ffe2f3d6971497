"""quantization_report.html: the quantization report as one page to look at.

Self-contained: styles and charts are in the page, nothing is loaded and nothing runs in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_edge.artifacts.directories import atomic_file
from awq_edge.html.page import Tile, render
from awq_edge.quantizer.report.charts import (
    EXACT_DB,
    clip_chart,
    error_chart,
    exponent_chart,
    gain_chart,
    gain_db,
    kind_of,
    time_chart,
)
from awq_edge.units import size_text

if TYPE_CHECKING:
    from awq_edge.quantizer.report.choice import ChoiceReport
    from awq_edge.quantizer.report.schema import (
        LinearReport,
        PerplexityComparison,
        QuantizationReport,
    )

PAGE_FILE = "quantization_report.html"
WORST = 10
# Beyond this many linears (experts) the page has no table of all of them: it would be megabytes.
_MOST_ROWS = 1000


@dataclass(frozen=True)
class _LinearRow:
    """A linear as the tables show it. lost: its error is above round-to-nearest's."""

    block: int
    name: str
    error: str
    sqnr: str
    rtn_error: str
    rtn_sqnr: str
    nf4_sqnr: str
    gain: str
    lost: bool
    scale: str
    clipped: str


def write_quantization_page(report: QuantizationReport, path: Path) -> None:
    """Write the page of a report to a file, whole or not at all. Needs the [host] extra.

    Raises OSError when it cannot be written.
    """
    text = quantization_page(report)
    with atomic_file(path) as work:
        work.write_text(text, encoding="utf-8")


def quantization_page(report: QuantizationReport) -> str:
    """The page of a report, as HTML. The same report gives the same text."""
    from markupsafe import Markup

    gain, clip = gain_chart(report), clip_chart(report)
    quantized = list(_quantized(report))
    # Stable: linears without an error, the last.
    ranked = sorted(quantized, key=lambda pair: -_rank(pair[1]))
    all_listed = len(quantized) <= WORST
    every = [] if all_listed or len(quantized) > _MOST_ROWS else quantized
    values: dict[str, Any] = {
        "model_name": report.model_name,
        "method": report.method,
        "errors_of": report.errors_of,
        "lead": _lead(report),
        "tiles": list(_tiles(report)),
        "choice": _choice(report.choice),
        "perplexities": [_perplexity_row(row) for row in report.perplexities],
        "has_nf4": any(linear.nf4_sqnr_db is not None for _, linear in quantized),
        "has_experts": any("*" in kind_of(linear.name) for _, linear in quantized),
        "choices": _choices(report),
        "error_chart": Markup(error_chart(report) or ""),
        "exponent_chart": Markup(exponent_chart(report) or ""),
        "time_chart": Markup(time_chart(report) or ""),
        "gain_chart": gain and {"svg": Markup(gain.svg), "outlined": gain.outlined},
        "gain_strongest": gain and f"{gain.strongest:.1f}",
        "clip_chart": clip and {"svg": Markup(clip.svg), "outlined": clip.outlined},
        "clip_strongest": clip and f"{clip.strongest:.1%}",
        "worst": [_row(*pair) for pair in ranked[:WORST]],
        "all_listed": all_listed,
        "every": [_row(*pair) for pair in every],
        "unquantized": _unquantized(report),
        "facts": [(name, value) for name, value in _facts(report) if value],
    }
    return render("quantization.html", values)


def _quantized(report: QuantizationReport) -> Iterator[tuple[int, LinearReport]]:
    """The quantized linears with their block, in the order of execution."""
    for block in report.blocks:
        for linear in block.linears:
            if linear.quantized:
                yield block.layer, linear


def _rank(linear: LinearReport) -> float:
    return -1.0 if linear.relative_mse is None else linear.relative_mse


def _lead(report: QuantizationReport) -> str:
    bits, groups = str(report.bits), f"groups of {report.group_size}"
    if report.choice is not None:
        bits, groups = report.choice.widths, "groups chosen with the bits"
    return (
        f"{report.model_type}, {len(report.blocks)} blocks: weights in {bits} bits by "
        f"{report.method}, {groups}, {report.scheme}."
    )


def _choice(choice: ChoiceReport | None) -> dict[str, Any] | None:
    """The formats that a budget has chosen, by the linears that share one and block."""
    if choice is None:
        return None
    units = {(unit.group, unit.layer): unit.offer for unit in choice.units}
    layers = sorted({layer for _, layer in units})
    counts = choice.counts()
    return {
        "lines": choice.lines(),
        "formats": choice.formats(),
        "counts": [
            (group, [f"{of_group[title]:,}" for title in choice.formats()])
            for group, of_group in counts.items()
        ],
        "groups": list(counts),
        "blocks": [
            (
                layer,
                [
                    (offer.title, f"{offer.loss:.2e}") if offer is not None else ("-", "-")
                    for offer in (units.get((group, layer)) for group in counts)
                ],
            )
            for layer in layers
        ],
    }


def _tiles(report: QuantizationReport) -> Iterator[Tile]:
    summary = report.summary
    if summary.mean_sqnr_db is not None:
        more = f"of the {report.errors_of}"
        if report.method != "rtn" and summary.mean_rtn_sqnr_db is not None:
            gain = summary.mean_sqnr_db - summary.mean_rtn_sqnr_db
            more = f"round-to-nearest {summary.mean_rtn_sqnr_db:.2f} dB: {gain:+.2f} dB"
        if summary.mean_nf4_sqnr_db is not None:
            more += f"; NF4 {summary.mean_nf4_sqnr_db:.2f} dB"
        yield Tile("Mean SQNR", f"{summary.mean_sqnr_db:.2f} dB", more)
    for row in report.perplexities[:1]:
        more = f"original {row.original:.3f}: {row.quantized / row.original - 1:+.2%}"
        yield Tile("Perplexity", f"{row.quantized:.3f}", more)
    total = summary.quantized_linears + summary.unquantized_linears
    yield Tile("Quantized linears", f"{summary.quantized_linears:,}", f"of {total:,} in blocks")
    yield Tile("Time", _duration(report.seconds), report.device)
    if report.peak_cuda_bytes is not None:
        yield Tile("Peak GPU memory", size_text(report.peak_cuda_bytes), report.device)
    elif report.peak_host_bytes is not None:
        yield Tile("Peak memory", size_text(report.peak_host_bytes), "of the process")


def _choices(report: QuantizationReport) -> str:
    """How often each form of the scale was chosen, in a sentence."""
    groups = {
        (block.layer, linear.group or linear.name): linear
        for block in report.blocks
        for linear in block.linears
        if linear.quantized
    }
    forms = Counter(map(_form, groups.values()))
    listed = ", ".join(f"{count:,} {form}" for form, count in forms.most_common())
    return f"Of {len(groups):,} groups: {listed}."


def _form(linear: LinearReport) -> str:
    if linear.fell_back:
        return "fell back"
    if linear.exponent is None:
        return "s = 1"
    return "weight-aware" if linear.weight_aware else "plain"


def _perplexity_row(row: PerplexityComparison) -> dict[str, str]:
    return {
        "text": row.text,
        "tokens": f"{row.tokens:,}",
        "window": f"{row.window}, {row.stride}",
        "original": f"{row.original:.4f}",
        "quantized": f"{row.quantized:.4f}",
        "difference": f"{row.quantized - row.original:+.4f} "
        f"({row.quantized / row.original - 1:+.2%})",
    }


def _row(layer: int, linear: LinearReport) -> _LinearRow:
    gain = gain_db(linear)
    form, exponent = _form(linear), linear.exponent
    scale = form if exponent is None else f"{exponent:.2f}, {form}"
    return _LinearRow(
        block=layer,
        name=linear.name,
        error=_error(linear.relative_mse),
        sqnr=_decibel(linear.sqnr_db),
        rtn_error=_error(linear.rtn_relative_mse),
        rtn_sqnr=_decibel(linear.rtn_sqnr_db),
        nf4_sqnr=_decibel(linear.nf4_sqnr_db),
        gain="-" if gain is None else f"{gain:+.2f}",
        lost=gain is not None and gain < 0,
        scale=f"{scale}, gptq" if linear.gptq else scale,
        clipped=f"{linear.clip_share:.1%}",
    )


def _unquantized(report: QuantizationReport) -> list[dict[str, str]]:
    """Kinds of linears that stay as they were, and why."""
    counts = Counter((kind_of(name), reason) for name, reason in report.unquantized.items())
    return [
        {"name": kind, "count": f"{count:,}", "reason": reason}
        for (kind, reason), count in counts.items()
    ]


def _facts(report: QuantizationReport) -> Iterator[tuple[str, str]]:
    yield "model", f"{report.model_name} ({report.model_type})"
    yield "method", report.method
    mostly = "" if report.choice is None else "mostly "
    yield "format", f"{mostly}{report.bits}-bit, groups of {report.group_size}, {report.scheme}"
    for warning in report.warnings:
        yield "warning", warning
    drawn = report.calibration
    if drawn is None:
        yield "calibration", "none: errors are those of the weights"
    else:
        yield (
            "calibration",
            f"{drawn.source}: {drawn.samples:,} sequences of {drawn.length:,} tokens, seed "
            f"{drawn.seed}",
        )
        yield "calibration tokens, sha256", drawn.sha256
        for file in drawn.files:
            part = "" if file.whole else "the first "
            yield (
                f"calibration file {file.name}",
                f"{part}{file.bytes:,} bytes, {file.documents:,} documents, sha256 {file.sha256}",
            )
        yield "left out of the folder", ", ".join(f"{n} ({w})" for n, w in drawn.left_out.items())
    changes = [block.fold_change for block in report.blocks if block.fold_change is not None]
    if changes:
        yield "largest change by a fold", f"{max(changes):.1e} of a block's float32 output"
    sampled = Counter(kind_of(name) for block in report.blocks for name in block.sampled_inputs)
    yield (
        "statistics from a token sample",
        ", ".join(f"{name} in {count:,} blocks" for name, count in sampled.items()),
    )
    silent = Counter(kind_of(name) for block in report.blocks for name in block.silent_inputs)
    yield (
        "reached by no calibration token",
        ", ".join(f"{name}: {count:,} inputs" for name, count in silent.items()),
    )
    yield "time", f"{_duration(report.seconds)}, on {report.device}, {report.threads} threads"
    yield "time by phase", _phases(report)
    if report.peak_host_bytes is not None:
        yield "peak memory of the process", size_text(report.peak_host_bytes)
    if report.peak_cuda_bytes is not None:
        yield "peak GPU memory", size_text(report.peak_cuda_bytes)
    yield "made", report.time
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield "commit", report.commit or "unknown"
    yield "inputs, sha256", report.inputs_sha256


def _phases(report: QuantizationReport) -> str:
    """The shares of the phases in the time of the blocks, largest first."""
    phases: Counter[str] = Counter()
    for block in report.blocks:
        phases.update(block.seconds_by_phase)
    total = sum(phases.values())
    if not total:
        return ""
    return ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in phases.most_common())


def _error(relative: float | None) -> str:
    return "-" if relative is None else f"{relative:.3e}"


def _decibel(value: float | None) -> str:
    if value is None:
        return "-"
    return "exact" if value >= EXACT_DB else f"{value:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
