"""The table of each experiment, from its rows: for the terminal and for Markdown.

+0.386 ± 0.054     perplexity above the unquantized model, with the standard error of that
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.result import Difference, ExperimentResult, Row

METHOD_LABELS: Mapping[str, str] = {
    "none": "16-bit",
    "rtn": "RTN",
    "mixed-activation": "RTN, 1 % in 16 bits by activation",
    "mixed-weight": "RTN, 1 % in 16 bits by weight",
    "mixed-random": "RTN, 1 % in 16 bits at random",
    "awq-fixed-s": "fixed s",
    "awq-scale": "AWQ, scale only",
    "awq-clip": "AWQ, clip only",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "awq+gptq": "AWQ+GPTQ",
    "nf4": "NF4",
    "w8a8": "W8A8",
    "smoothquant": "SmoothQuant, W8A8",
}


@dataclass(frozen=True)
class Table:
    """title: what the cells are. header and rows: texts; the first column is the row's name."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The header and the rows; the title is not in it."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def table_of(experiment: ExperimentResult) -> Table:
    """The table that belongs to an experiment's name."""
    return _TABLES[experiment.name](experiment.rows)


def single_text(rows: Sequence[Row]) -> str:
    """The name of the text of rows that have one."""
    (name,) = {name for row in rows for name in row.texts}
    return name


def gap(rows: Sequence[Row]) -> str:
    """The gap of a row; of several draws the mean and their standard deviation."""
    if not rows:
        return ""
    values = [row.texts[single_text(rows)].gap for row in rows]
    if len(values) == 1:
        return signed(values[0])
    spread = statistics.stdev(value.value for value in values)
    mean = statistics.fmean(value.value for value in values)
    return f"{mean:+.3f} ({len(values)} draws, sd {spread:.3f})"


def signed(difference: Difference) -> str:
    return f"{difference.value:+.3f} ± {difference.standard_error:.3f}"


def size_label(row: Row) -> str:
    """Bits and group of a row: "INT3 g128"."""
    return f"INT{row.bits} {group_label(row)}"


def group_label(row: Row) -> str:
    return "row" if row.group_size is None else f"g{row.group_size}"


def _distinct(rows: Sequence[Row], key: Callable[[Row], str]) -> list[str]:
    """In the order of the rows."""
    return list(dict.fromkeys(map(key, rows)))


def _pivot(
    title: str,
    rows: Sequence[Row],
    name: Callable[[Row], str],
    column: Callable[[Row], str],
    corner: str,
) -> Table:
    """Gaps, one row for each name and one column for each value of `column`."""
    columns = _distinct(rows, column)
    cells = [
        (label, *(gap([r for r in rows if name(r) == label and column(r) == c]) for c in columns))
        for label in _distinct(rows, name)
    ]
    return Table(title, (corner, *columns), tuple(cells))


def _methods(rows: Sequence[Row]) -> Table:

    def column(row: Row) -> str:
        return f"{row.model} INT{row.bits or 4}"  # NF4 is a 4-bit format

    others = [row for row in rows if row.method != "none"]
    table = _pivot(
        f"Perplexity above that of 16 bits ({_unquantized(rows)}), groups of 128",
        others,
        lambda row: METHOD_LABELS[row.method],
        column,
        "method",
    )
    return _with_bits(table, others, lambda row: METHOD_LABELS[row.method])


def _salience(rows: Sequence[Row]) -> Table:
    others = [row for row in rows if row.method != "none"]
    groups = " or ".join(_distinct([row for row in others if row.bits], size_label))
    table = _pivot(
        f"Perplexity above that of 16 bits ({_unquantized(rows)}), {groups}",
        others,
        protection_label,
        lambda row: row.model,
        "weights",
    )
    return _with_bits(table, others, protection_label)


def _unquantized(rows: Sequence[Row]) -> str:
    """Perplexities of the models in 16 bits, by name."""
    text = single_text(rows)
    return ", ".join(
        f"{row.model} {row.texts[text].perplexity:.3f}" for row in rows if row.method == "none"
    )


def protection_label(row: Row) -> str:
    """The name of a row of `salience`."""
    if row.method == "awq-fixed-s":
        return f"RTN, s = {row.s:g} for 1 % by activation"
    return METHOD_LABELS[row.method]


def _with_bits(table: Table, rows: Sequence[Row], name: Callable[[Row], str]) -> Table:
    """A table with bits a weight as its second column: of the first model, by width."""
    bits = {
        label: " / ".join(
            dict.fromkeys(
                f"{row.bits_per_weight:.2f}"
                for row in rows
                if name(row) == label and row.model == rows[0].model
            )
        )
        for label in _distinct(rows, name)
    }
    cells = tuple((label, bits[label], *rest) for label, *rest in table.rows)
    return Table(table.title, (table.header[0], "bits a weight", *table.header[1:]), cells)


def _fixed_s(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        assert row.effect is not None
        effect = row.effect
        cells.append(
            (
                f"{row.model}, s = {row.s:g}",
                f"{effect.changed_groups:.1%}",
                f"{effect.scale_ratio:.3f}",
                f"{effect.expected_error_ratio:.3f}",
                f"{effect.salient_error_ratio:.3f}",
                f"{effect.other_error_ratio:.3f}",
                f"{row.texts[single_text(rows)].perplexity:.3f}",
                gap([row]),
            )
        )
    header = (
        "model",
        "Δ' ≠ Δ",
        "mean Δ'/Δ",
        "mean Δ'/Δ · 1/s",
        "error of the scaled channels",
        "error of the others",
        "perplexity",
        "gap to 16 bits",
    )
    return Table(
        "INT3 g128, s for 1 % of the channels; errors relative to s = 1", header, (*cells,)
    )


def _group_size(rows: Sequence[Row]) -> Table:
    return _pivot(
        "Perplexity above that of 16 bits",
        rows,
        lambda row: f"{size_label(row)} ({row.bits_per_weight:.2f} bits a weight)",
        lambda row: f"{row.model} {METHOD_LABELS[row.method]}",
        "format",
    )


def _int2(rows: Sequence[Row]) -> Table:
    return _pivot(
        "Perplexity above that of 16 bits",
        rows,
        lambda row: METHOD_LABELS[row.method],
        lambda row: f"{row.model} {size_label(row)}",
        "method",
    )


def _calibration_size(rows: Sequence[Row]) -> Table:
    return _pivot(
        "Perplexity above that of 16 bits, INT3 g128",
        rows,
        lambda row: str(row.calibration.samples if row.calibration else ""),
        lambda row: f"{row.model} {METHOD_LABELS[row.method]}",
        "samples",
    )


def _calibration_domain(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        assert row.calibration is not None
        for name, measured in row.texts.items():
            difference = row.differences.get(name)
            cells.append(
                (
                    row.model,
                    METHOD_LABELS[row.method],
                    row.calibration.source,
                    name,
                    f"{measured.perplexity:.3f}",
                    signed(measured.gap),
                    "" if difference is None else signed(difference),
                )
            )
    header = ("model", "method", "calibrated on", "text", "perplexity", "gap to 16 bits", "shift")
    return Table("INT3 g128; shift: against calibration on the first text", header, tuple(cells))


def _propagation(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        if not row.propagate_error:
            continue
        same = [r for r in rows if _same_but_propagation(r, row) and not r.propagate_error]
        difference = row.differences[single_text(rows)]
        name = f"{row.model} {size_label(row)} {METHOD_LABELS[row.method]}"
        cells.append((name, gap(same), gap([row]), signed(difference)))
    header = ("model", "without", "with", "with - without")
    return Table("Perplexity above that of 16 bits, error propagation", header, tuple(cells))


def _same_but_propagation(one: Row, other: Row) -> bool:
    return (one.model, one.bits, one.method) == (other.model, other.bits, other.method)


_TABLES: Mapping[str, Callable[[Sequence[Row]], Table]] = {
    "methods": _methods,
    "salience": _salience,
    "fixed-s": _fixed_s,
    "group-size": _group_size,
    "int2": _int2,
    "calibration-size": _calibration_size,
    "calibration-domain": _calibration_domain,
    "propagation": _propagation,
}
