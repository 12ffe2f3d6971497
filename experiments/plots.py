"""The plot of each experiment, as SVG. One panel for each variant of the model, and where INT3 and
INT4 differ much in scale, one for each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display
import matplotlib.pyplot as plt

from awq_edge.artifacts.directories import atomic_file
from experiments.result import ExperimentResult, Row
from experiments.tables import (
    METHOD_LABELS,
    group_label,
    protection_label,
    single_text,
    size_label,
)

# A palette that stays apart for most kinds of colour blindness (Okabe and Ito, 2008).
_COLOURS: Mapping[str, str] = {
    "rtn": "#7f7f7f",
    "mixed-activation": "#56B4E9",
    "mixed-weight": "#a9c9dd",
    "mixed-random": "#d0dde5",
    "awq-scale": "#f0b469",
    "awq-clip": "#f5d3a4",
    "awq": "#E69F00",
    "gptq": "#0072B2",
    "awq+gptq": "#009E73",
    "nf4": "#CC79A7",
    "awq-fixed-s": "#f0b469",
    "w8a8": "#D55E00",
    "smoothquant": "#D55E00",
}
_SHORT: Mapping[str, str] = {
    "mixed-activation": "1 % fp16, activation",
    "mixed-weight": "1 % fp16, weight",
    "mixed-random": "1 % fp16, random",
}
# Any: the keys are literal types that only matplotlib spells out.
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
    "svg.hashsalt": "awq-edge",  # the same rows make the same file
    "svg.fonttype": "path",
}
_GAP = "perplexity above 16 bits"


def write_plot(experiment: ExperimentResult, path: Path) -> None:
    """Draw an experiment into the SVG file `path`."""
    with plt.rc_context(_STYLE):
        figure = _PLOTS[experiment.name](experiment.rows)
        try:
            with atomic_file(path) as work:
                # Without the date: the same rows make the same file.
                figure.savefig(work, format="svg", metadata={"Date": None}, bbox_inches="tight")
        finally:
            plt.close(figure)


def _label(method: str) -> str:
    return _SHORT.get(method, METHOD_LABELS[method])


def _models(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _gaps(rows: Sequence[Row], text: str) -> tuple[float, float]:
    """Mean gap, and what its bar of error shows: of draws their spread, else the standard error."""
    values = [row.texts[text].gap for row in rows]
    if len(values) > 1:
        return statistics.fmean(v.value for v in values), statistics.stdev(v.value for v in values)
    return values[0].value, values[0].standard_error


def _panels(rows: int, columns: int, *, height: float, **options: Any) -> tuple[Any, Any]:
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, height * rows), squeeze=False, **options
    )
    figure.set_layout_engine("constrained")
    return figure, axes


def _from_zero(axis: Any) -> None:
    """Zero is in the picture; what lies below it too."""
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))


def _bars(axis: Any, shown: Sequence[tuple[str, Sequence[Row]]]) -> None:
    """Horizontal bars of gaps with their values. shown: labels, each with the draws of its row."""
    text = single_text(shown[0][1])
    largest = max(_gaps(own, text)[0] for _, own in shown)
    for place, (_, own) in enumerate(shown):
        value, error = _gaps(own, text)
        colour = _COLOURS[own[0].method]
        axis.barh(place, value, xerr=error, color=colour, ecolor="#444444", height=0.72)
        axis.text(max(value, 0) + error + largest * 0.02, place, f"{value:.2f}", va="center")
    axis.set_yticks(range(len(shown)), [label for label, _ in shown])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.axvline(0, color="#444444", linewidth=0.8)
    axis.margins(x=0.14)
    axis.set_xlabel(_GAP)


def _by_method(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of each method, in the order of METHOD_LABELS."""
    shown = [(_label(m), [row for row in rows if row.method == m]) for m in METHOD_LABELS]
    return [(label, own) for label, own in shown if own]


def _methods(rows: Sequence[Row]) -> Any:
    models = _models(rows)
    figure, axes = _panels(2, len(models), height=2.9)
    coded = [row for row in rows if row.method != "none"]
    for line, bits in zip(axes, (4, 3), strict=True):
        for axis, model in zip(line, models, strict=True):
            # NF4 is a 4-bit format.
            _bars(
                axis, _by_method([r for r in coded if r.model == model and (r.bits or 4) == bits])
            )
            axis.set_title(f"{model}, INT{bits} g128")
    return figure


def _salience(rows: Sequence[Row]) -> Any:
    models = _models(rows)
    figure, axes = _panels(1, len(models), height=3.6)
    for axis, model in zip(axes[0], models, strict=True):
        own = [row for row in rows if row.model == model and row.method != "none"]
        labels = list(dict.fromkeys(map(protection_label, own)))
        _bars(axis, [(each, [r for r in own if protection_label(r) == each]) for each in labels])
        axis.set_title(f"{model}, {size_label(own[0])}")
    return figure


def _fixed_s(rows: Sequence[Row]) -> Any:
    models = _models(rows)
    text = single_text(rows)
    figure, axes = _panels(1, len(models) + 1, height=2.9)
    for axis, model in zip(axes[0], models, strict=False):
        own = [row for row in rows if row.model == model]
        values = [row.texts[text].gap for row in own]
        axis.errorbar(
            [row.s for row in own],
            [value.value for value in values],
            yerr=[value.standard_error for value in values],
            color=_COLOURS["awq"],
            marker="o",
            capsize=2,
        )
        axis.set_title(f"{model}, INT3 g128")
        axis.set_ylabel(_GAP)
        lowest, highest = (f(value.value for value in values) for f in (min, max))
        if 0 < 10 * lowest < highest:  # a large s can cost hundreds
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:g}")
        else:
            _from_zero(axis)
    errors = axes[0][-1]
    for model, style in zip(models, ("-", "--"), strict=False):
        own = [row for row in rows if row.model == model]
        scaled = [row.effect.salient_error_ratio for row in own if row.effect]
        others = [row.effect.other_error_ratio for row in own if row.effect]
        factors = [row.s for row in own]
        errors.plot(factors, scaled, style, color="#0072B2", marker="o", label=f"scaled, {model}")
        errors.plot(factors, others, style, color="#7f7f7f", marker="o", label=f"others, {model}")
    factors = [row.s for row in rows if row.model == models[0]]
    errors.plot(factors, [1 / s for s in factors if s], ":", color="#444444", label="1/s")
    errors.set_title("error of the weights, relative to s = 1")
    errors.set_yscale("log", base=2)
    errors.yaxis.set_major_formatter("{x:g}")
    errors.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axis in axes[0]:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("s of the 1 % largest channels")
    return figure


def _group_size(rows: Sequence[Row]) -> Any:
    models = _models(rows)
    figure, axes = _panels(2, len(models), height=2.7)
    for line, bits in zip(axes, (4, 3), strict=True):
        for axis, model in zip(line, models, strict=True):
            own = [row for row in rows if row.model == model and row.bits == bits]
            _lines(axis, own, group_label, ("rtn", "awq"))
            axis.set_title(f"{model}, INT{bits}")
            axis.set_xlabel("group")
    return figure


def _calibration_size(rows: Sequence[Row]) -> Any:
    models = _models(rows)
    figure, axes = _panels(1, len(models), height=2.9)
    for axis, model in zip(axes[0], models, strict=True):
        own = [row for row in rows if row.model == model]
        _lines(axis, own, lambda r: str(r.calibration.samples if r.calibration else ""))
        axis.set_title(f"{model}, INT3 g128")
        axis.set_xlabel("calibration samples of 512 tokens")
    return figure


def _lines(
    axis: Any,
    rows: Sequence[Row],
    place: Callable[[Row], str],
    methods: Sequence[str] = ("awq", "gptq"),
) -> None:
    """Gaps over evenly spaced places, one line for each method."""
    text = single_text(rows)
    places = list(dict.fromkeys(map(place, rows)))
    for shift, method in zip((-0.04, 0.04), methods, strict=True):  # error bars side by side
        own = [[r for r in rows if r.method == method and place(r) == p] for p in places]
        values = [_gaps(each, text) for each in own]
        axis.errorbar(
            [index + shift for index in range(len(places))],
            [value for value, _ in values],
            yerr=[error for _, error in values],
            color=_COLOURS[method],
            marker="o",
            capsize=2,
            label=_label(method),
        )
    axis.set_xticks(range(len(places)), places)
    _from_zero(axis)
    axis.set_ylabel(_GAP)
    axis.legend()


def _int2(rows: Sequence[Row]) -> Any:
    models, sizes = _models(rows), list(dict.fromkeys(map(group_label, rows)))
    figure, axes = _panels(len(sizes), len(models), height=1.7)
    for line, size in zip(axes, sizes, strict=True):
        for axis, model in zip(line, models, strict=True):
            own = [row for row in rows if row.model == model and group_label(row) == size]
            _bars(axis, _by_method(own))
            axis.set_title(f"{model}, INT2 {size}")
    return figure


def _calibration_domain(rows: Sequence[Row]) -> Any:
    models = _models(rows)
    texts = list(dict.fromkeys(name for row in rows for name in row.texts))
    figure, axes = _panels(len(texts), len(models), height=2.3)
    sources = list(dict.fromkeys(r.calibration.source for r in rows if r.calibration))
    for line, text in zip(axes, texts, strict=True):
        for axis, model in zip(line, models, strict=True):
            for column, method in enumerate(("awq", "gptq")):
                for index, source in enumerate(sources):
                    (row,) = [
                        r
                        for r in rows
                        if (r.model, r.method) == (model, method)
                        and r.calibration is not None
                        and r.calibration.source == source
                    ]
                    value = row.texts[text].gap
                    axis.bar(
                        column + (index - (len(sources) - 1) / 2) * 0.36,
                        value.value,
                        yerr=value.standard_error,
                        width=0.34,
                        color=_COLOURS[method],
                        alpha=1.0 if index == 0 else 0.5,
                        ecolor="#444444",
                        label=f"{_label(method)}, calibrated on {source}",
                    )
            axis.set_xticks(range(2), [_label(m) for m in ("awq", "gptq")])
            axis.grid(axis="x", visible=False)
            axis.axhline(0, color="#444444", linewidth=0.8)
            axis.set_title(f"{model}, INT3 g128, scored on {text}")
            axis.set_ylabel(_GAP)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _propagation(rows: Sequence[Row]) -> Any:
    """How much perplexity changes by propagation, with the error of the change."""
    shown = [row for row in rows if row.propagate_error]
    text = single_text(rows)
    figure, axes = _panels(1, 2, height=2.6)
    for axis, bits in zip(axes[0], (4, 3), strict=True):
        own = [row for row in shown if row.bits == bits]
        for place, row in enumerate(own):
            change = row.differences[text]
            axis.errorbar(
                change.value,
                place,
                xerr=change.standard_error,
                color=_COLOURS[row.method],
                marker="o",
                capsize=3,
            )
        axis.axvline(0, color="#444444", linewidth=0.8)
        axis.set_yticks(range(len(own)), [f"{row.model}, {_label(row.method)}" for row in own])
        axis.invert_yaxis()
        axis.margins(y=0.12)
        axis.set_title(f"INT{bits} g128")
        axis.set_xlabel("change of perplexity by propagation")
    return figure


_PLOTS: Mapping[str, Callable[[Sequence[Row]], Any]] = {
    "methods": _methods,
    "salience": _salience,
    "fixed-s": _fixed_s,
    "group-size": _group_size,
    "int2": _int2,
    "calibration-size": _calibration_size,
    "calibration-domain": _calibration_domain,
    "propagation": _propagation,
}
