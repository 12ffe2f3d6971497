"""The charts of the quantization page: from a report to SVG.

Linears of one kind stand together: "mlp.down_proj" of every block, and of a mixture of experts
"mlp.experts.*.down_proj", of which the median is drawn and, as a band, the lowest and the highest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from awq_edge.html.charts import Cell, Dash, Line, Mark, Role, bars, heat_map, panels

if TYPE_CHECKING:
    from awq_edge.quantizer.report.schema import BlockReport, LinearReport, QuantizationReport

# A linear without any noise is reported with some 300 dB: off every scale.
EXACT_DB = 150.0
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_X_LABEL = "block"


@dataclass(frozen=True)
class HeatMap:
    """svg, and the value that the strongest colour stands for. outlined: whether cells are without
    a value, of which their tooltips tell why."""

    svg: str
    strongest: float
    outlined: bool


def kind_of(name: str) -> str:
    """The kind of a linear: its name in the block, every number in it a star."""
    return _NUMBER.sub("*", name)


def gain_db(linear: LinearReport) -> float | None:
    """dB that a linear's error is below round-to-nearest's; None where there is no error."""
    if linear.sqnr_db is None or linear.rtn_sqnr_db is None:
        return None
    return linear.sqnr_db - linear.rtn_sqnr_db


def error_chart(report: QuantizationReport) -> str | None:
    """SQNR by block, a panel for each kind of linear, against round-to-nearest and NF4."""
    kinds = _kinds(report)
    lines: list[list[Line]] = []
    for blocks in kinds.values():
        own = _line(blocks, lambda linear: linear.sqnr_db, "series")
        plain = _line(blocks, lambda linear: linear.rtn_sqnr_db, "base", dash="dashed")
        nf4 = _line(blocks, lambda linear: linear.nf4_sqnr_db, "third", dash="dotted")
        others = [nf4] if _has_points([nf4]) else []
        lines.append([*others, own] if report.method == "rtn" else [*others, plain, own])
    drawn = [(kind, line) for kind, line in zip(kinds, lines, strict=True) if _has_points(line)]
    if not drawn:
        return None
    return panels(
        [kind for kind, _ in drawn],
        [line for _, line in drawn],
        [[] for _ in drawn],
        key="error",
        label="SQNR in dB by block for each kind of linear",
        x_label=_X_LABEL,
        y_label="SQNR, dB",
        columns=min(4, len(drawn)),
    )


def gain_chart(report: QuantizationReport) -> HeatMap | None:
    """dB over round-to-nearest by block and kind; None where the method is round-to-nearest."""
    if report.method == "rtn":
        return None
    return _heat_map(
        report,
        gain_db,
        lambda value: f"{value:+.2f}",
        " dB",
        key="gain",
        label="Gain over round-to-nearest in dB, by block and kind of linear",
    )


def clip_chart(report: QuantizationReport) -> HeatMap | None:
    """Share of clipped groups by block and kind; None where nothing was clipped."""
    linears = [linear for block in report.blocks for linear in block.linears]
    if not any(linear.clip_share for linear in linears):
        return None
    return _heat_map(
        report,
        lambda linear: linear.clip_share if linear.quantized else None,
        lambda value: f"{value:.1%}",
        " of the groups clipped",
        key="clip",
        label="Share of clipped groups, by block and kind of linear",
    )


def exponent_chart(report: QuantizationReport) -> str | None:
    """Chosen exponents by block, a panel for each scale group; None where none was searched."""
    if "awq" not in report.method:
        return None
    kinds: dict[str, Blocks] = {}
    for block in report.blocks:
        # The linears of a group share its choice: one of them stands for it.
        groups = {linear.group or linear.name: linear for linear in block.linears}
        for group, linear in groups.items():
            if linear.quantized:
                kinds.setdefault(kind_of(group), {}).setdefault(block.layer, []).append(linear)
    if not kinds:
        return None
    # Hundreds of experts a block would be a cloud: their median and range instead.
    crowded = {kind for kind, blocks in kinds.items() if any(len(g) > 1 for g in blocks.values())}
    lines = [
        [_line(blocks, _exponent, "series")] if kind in crowded else []
        for kind, blocks in kinds.items()
    ]
    marks = [
        [_exponent_mark(layer, kind, group[0]) for layer, group in blocks.items()]
        if kind not in crowded
        else []
        for kind, blocks in kinds.items()
    ]
    return panels(
        list(kinds),
        lines,
        marks,
        key="exponent",
        label="Exponent of the chosen scale by block for each scale group",
        x_label=_X_LABEL,
        y_label="exponent",
        y_range=(-0.06, 1.06),
        columns=min(4, len(kinds)),
        panel_height=1.35,
    )


def time_chart(report: QuantizationReport) -> str | None:
    """Seconds of each block; None for a single one."""
    if len(report.blocks) < 2:
        return None
    return bars(
        [block.seconds for block in report.blocks],
        [_time_tip(block) for block in report.blocks],
        key="time",
        label="Seconds by block",
        x_label=_X_LABEL,
        y_label="seconds",
    )


def _time_tip(block: BlockReport) -> str:
    phases = [f"{name} {seconds:.2f}" for name, seconds in block.seconds_by_phase.items()]
    total = f"block {block.layer}: {block.seconds:.2f} s"
    return f"{total} ({', '.join(phases)})" if phases else total


Blocks = dict[int, list["LinearReport"]]


def _kinds(report: QuantizationReport) -> dict[str, Blocks]:
    """Linears by kind and block, kinds in the order of execution."""
    kinds: dict[str, Blocks] = {}
    for block in report.blocks:
        for linear in block.linears:
            blocks = kinds.setdefault(kind_of(linear.name), {})
            blocks.setdefault(block.layer, []).append(linear)
    return kinds


def _values(
    linears: Sequence[LinearReport], of: Callable[[LinearReport], float | None]
) -> list[float]:
    values = (of(linear) for linear in linears)
    return [value for value in values if value is not None and abs(value) < EXACT_DB]


def _line(
    blocks: Blocks,
    of: Callable[[LinearReport], float | None],
    role: Role,
    *,
    dash: Dash = "solid",
) -> Line:
    values = [_values(linears, of) for linears in blocks.values()]
    has_band = any(len(of_kind) > 1 for of_kind in values)
    return Line(
        x=list(blocks),
        y=[median(of_kind) if of_kind else math.nan for of_kind in values],
        role=role,
        dash=dash,
        band=None
        if not has_band
        else (
            [min(of_kind, default=math.nan) for of_kind in values],
            [max(of_kind, default=math.nan) for of_kind in values],
        ),
    )


def _has_points(lines: Sequence[Line]) -> bool:
    return any(not math.isnan(y) for line in lines for y in line.y)


def _heat_map(
    report: QuantizationReport,
    of: Callable[[LinearReport], float | None],
    show: Callable[[float], str],
    unit: str,
    *,
    key: str,
    label: str,
) -> HeatMap | None:
    kinds = _kinds(report)
    places = {block.layer: column for column, block in enumerate(report.blocks)}
    medians: dict[tuple[int, int], float] = {}
    outlines: list[Cell] = []
    for row, (kind, blocks) in enumerate(kinds.items()):
        for layer, linears in blocks.items():
            values = _values(linears, of)
            if values:
                medians[row, layer] = median(values)
                continue
            why = linears[0].reason or "no calibration token reached it"
            tip = f"block {layer}, {kind}: {why}"
            outlines.append(Cell(row, places[layer], None, "muted", tip))
    strongest = max(map(abs, medians.values()), default=0.0)
    if not strongest:
        return None
    names = list(kinds)
    cells = [
        Cell(
            row,
            places[layer],
            abs(value) / strongest,
            "series" if value >= 0 else "other",
            f"block {layer}, {names[row]}: {show(value)}{unit}",
            show(value),
        )
        for (row, layer), value in medians.items()
    ]
    svg = heat_map(names, len(places), [*cells, *outlines], key=key, label=label, x_label=_X_LABEL)
    return HeatMap(svg, strongest, bool(outlines))


def _exponent(linear: LinearReport) -> float:
    return linear.exponent or 0.0  # the plain form with 0 is s = 1


def _exponent_mark(layer: int, group: str, linear: LinearReport) -> Mark:
    place = f"block {layer}, {group}"
    if linear.fell_back:
        tip = f"{place}: fell back to s = 1, no scale was better"
        return Mark(layer, 0.0, "cross", "muted", tip)
    if linear.exponent is None:
        return Mark(layer, 0.0, "ring", "muted", f"{place}: s = 1 was the best")
    tip = f"{place}: exponent {linear.exponent:.2f}"
    if linear.weight_aware:
        return Mark(layer, linear.exponent, "diamond", "other", f"{tip}, weight-aware")
    return Mark(layer, linear.exponent, "disc", "series", f"{tip}, plain")
