"""The table of a comparison, in Markdown: by bits a weight, the nearest to 16 bits first."""

from __future__ import annotations

from experiments.quantizers.result import Comparison, MeasuredRow
from experiments.tables import Table


def table_of(comparison: Comparison) -> Table:
    """One line a row. Whole bits a weight are kept together, so that equal widths compare."""
    reports = [row.divergence for row in comparison.rows]
    title = (
        f"KL divergence from 16 bits (perplexity {reports[0].reference_perplexity:.3f}), "
        f"{reports[0].tokens} tokens of {reports[0].text.path.rpartition('/')[2]}, windows of "
        f"{reports[0].window}"
    )
    header = (
        "weights",
        "bits a weight",
        "KL, nats",
        "same likeliest token",
        "perplexity above 16 bits",
        "seconds, on",
    )
    ordered = sorted(comparison.rows, key=_order)
    return Table(title, header, tuple(map(_cells, ordered)))


def _order(row: MeasuredRow) -> tuple[int, float]:
    return -int(row.made.bits_per_weight), row.divergence.kl.mean


def _cells(row: MeasuredRow) -> tuple[str, ...]:
    report = row.divergence
    assert report.kl.standard_error is not None  # of one token alone
    return (
        row.label,
        f"{row.made.bits_per_weight:.2f}",
        f"{report.kl.mean:.4f} ± {report.kl.standard_error:.4f}",
        f"{report.top1_agreement:.1%}",
        f"{report.perplexity - report.reference_perplexity:+.2f}",
        f"{row.made.seconds:.0f}, {row.made.device}",
    )
