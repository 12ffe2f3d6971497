"""Charts as inline SVG in the colours of the page that shows them.

matplotlib draws with one placeholder colour a role; in the SVG each of them becomes a CSS variable
(`var(--series)`). So one drawing serves light mode, dark mode and print, and text in it stays text.
A page defines the variables, see `templates/base.html`. The same data give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Shape = Literal["disc", "diamond", "ring", "cross"]
Dash = Literal["solid", "dashed", "dotted"]
Role = Literal["ink", "muted", "rule", "series", "other", "base", "third"]
# Nobody draws in these by accident: nearly black, one apart.
_PLACEHOLDERS: dict[Role, str] = {
    "ink": "#0a0b01",
    "muted": "#0a0b02",
    "rule": "#0a0b03",
    "series": "#0a0b04",
    "other": "#0a0b05",
    "base": "#0a0b06",
    "third": "#0a0b07",
}
# Lengths of strokes and gaps in line widths.
_DASHES: dict[Dash, tuple[float, ...]] = {"solid": (), "dashed": (3, 2), "dotted": (1, 1.5)}
# matplotlib's marker, and whether it is filled.
_SHAPES: dict[Shape, tuple[str, bool]] = {
    "disc": ("o", True),
    "diamond": ("D", True),
    "ring": ("o", False),
    "cross": ("x", False),
}
_WIDTH = 9.6  # inches; the page scales a chart to its own width
_TIP = "tip:"  # an artist's gid with this in front becomes its tooltip
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # what XML cannot hold
_MAX_TICKS = 12
_MOST_TEXTS = 16  # columns of a heat map whose cells have room for their value
_STRONGEST = 0.65  # opacity: the value can still be read on it


def colour(role: Role) -> str:
    """The placeholder colour of a role, for matplotlib."""
    return _PLACEHOLDERS[role]


@dataclass(frozen=True)
class Line:
    """y over x in one panel, joined; NaN leaves a gap. band: lowest and highest y, or None."""

    x: Sequence[float]
    y: Sequence[float]
    role: Role
    dash: Dash = "solid"
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Mark:
    """One point of a panel. tip: shown when pointed at."""

    x: float
    y: float
    shape: Shape
    role: Role
    tip: str


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map."""

    row: int
    column: int
    # 0..1, its distance from the background; None: an empty cell, drawn as an outline
    strength: float | None
    role: Role
    tip: str
    text: str = ""  # the value, written where there is room


@contextmanager
def chart_style() -> Iterator[None]:
    """The style of every chart, inside the block: sizes, colours, labels that are never
    formulas."""
    from matplotlib import style

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "awq-edge",
        "text.parse_math": False,
        "font.size": 8.5,
        "axes.titlesize": 8.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 5.0,
        "axes.titley": 1.0,
        "axes.linewidth": 0.7,
        "axes.grid": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "text.color": colour("ink"),
        "axes.titlecolor": colour("ink"),
        "axes.labelcolor": colour("muted"),
        "axes.edgecolor": colour("rule"),
        "xtick.color": colour("rule"),
        "ytick.color": colour("rule"),
        "xtick.labelcolor": colour("muted"),
        "ytick.labelcolor": colour("muted"),
        "grid.color": colour("rule"),
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.5,
        "lines.markersize": 4.0,
    }
    # "default": not the user's own matplotlibrc.
    with style.context(["default", settings]):
        yield


def panels(
    titles: Sequence[str],
    lines: Sequence[Sequence[Line]],
    marks: Sequence[Sequence[Mark]],
    *,
    key: str,
    label: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    columns: int = 4,
    panel_height: float = 1.55,
    whole_x: bool = True,
) -> str:
    """Small charts side by side with the same axes, one a title; SVG.

    lines, marks: of each panel.
    key: unique in the page.
    label: the content of the chart, in words.
    whole_x: x is a count, with no ticks between two whole numbers.
    """
    from matplotlib.ticker import MaxNLocator

    rows = -(-len(titles) // columns)
    with chart_style():
        figure = _figure(0.6 + rows * (panel_height + 0.45))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        axes: list[Axes] = list(grid.flat)
        for index, axis in enumerate(axes):
            if index >= len(titles):
                axis.set_axis_off()
                continue
            axis.set_title(_plain(titles[index]))
            axis.grid(axis="y")
            axis.set_axisbelow(True)
            axis.tick_params(length=2, labelleft=index % columns == 0)
            last_row = index + columns >= len(titles)
            axis.tick_params(labelbottom=last_row)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=whole_x, min_n_ticks=1))
            axis.yaxis.set_major_locator(MaxNLocator(5))
            if last_row:
                axis.set_xlabel(x_label)
            if index % columns == 0:
                axis.set_ylabel(y_label)
            for line in lines[index]:
                _draw_line(axis, line)
            for mark in marks[index]:
                _draw_mark(axis, mark)
        if y_range is not None:
            axes[0].set_ylim(*y_range)
        axes[0].margins(x=0.04)
        _place(figure, left=0.6, right=0.1, top=0.3, bottom=0.5, wspace=0.1, hspace=0.42)
        return inline_svg(figure, key, label)


def heat_map(
    rows: Sequence[str],
    columns: int,
    cells: Sequence[Cell],
    *,
    key: str,
    label: str,
    x_label: str,
    row_height: float = 0.26,
) -> str:
    """Cells in named rows over columns 0 to columns - 1, each as strong as its value; SVG."""
    longest = max((len(row) for row in rows), default=0)
    with chart_style():
        figure = _figure(0.75 + row_height * len(rows))
        axis = figure.subplots()
        for cell in cells:
            _draw_cell(axis, cell, columns)
        axis.set_xlim(-0.5, columns - 0.5)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_yticks(range(len(rows)), [_plain(row) for row in rows])
        axis.set_xticks(range(0, columns, max(1, -(-columns // (2 * _MAX_TICKS)))))
        axis.tick_params(length=0)
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
        axis.set_xlabel(x_label)
        _place(figure, left=0.35 + 0.075 * longest, right=0.1, top=0.1, bottom=0.5)
        return inline_svg(figure, key, label)


def bars(
    values: Sequence[float],
    tips: Sequence[str],
    *,
    key: str,
    label: str,
    x_label: str,
    y_label: str,
    height: float = 1.7,
) -> str:
    """One bar a value, numbered from 0; SVG."""
    from matplotlib.ticker import MaxNLocator

    with chart_style():
        figure = _figure(height)
        axis = figure.subplots()
        drawn = axis.bar(range(len(values)), values, width=0.8, color=colour("series"))
        for bar, tip in zip(drawn, tips, strict=True):
            bar.set_gid(_tip(tip))
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        axis.set_xlim(-0.6, len(values) - 0.4)
        axis.xaxis.set_major_locator(MaxNLocator(_MAX_TICKS, integer=True, min_n_ticks=1))
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.tick_params(length=2)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        _place(figure, left=0.6, right=0.1, top=0.1, bottom=0.5)
        return inline_svg(figure, key, label)


def inline_svg(figure: Figure, key: str, label: str) -> str:
    """A figure as an <svg> element for HTML: page colours, tooltips, no name space, no metadata.

    key: goes before every id, so that charts of one page do not meet. label: for screen readers.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    variables = {hex_colour: f"var(--{role})" for role, hex_colour in _PLACEHOLDERS.items()}
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id" and value.startswith(_TIP):
                title = ElementTree.Element("title")
                title.text = value.removeprefix(_TIP)
                element.insert(0, title)
                continue
            element.set(name, _rewritten(name, value, key, variables))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", _plain(label))
    return ElementTree.tostring(root, encoding="unicode")


def _rewritten(name: str, value: str, key: str, variables: Mapping[str, str]) -> str:
    """An attribute of matplotlib's SVG as the page has it."""
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-", 1)
    value = value.replace("url(#", f"url(#{key}-")
    if name == "style":
        for placeholder, variable in variables.items():
            value = value.replace(placeholder, variable)
    return value


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height))


def _place(
    figure: Figure,
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
    wspace: float | None = None,
    hspace: float | None = None,
) -> None:
    """Margins in inches: labels have the same room whatever the height."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=wspace,
        hspace=hspace,
    )


def _draw_line(axis: Axes, line: Line) -> None:
    if line.band is not None:
        axis.fill_between(
            line.x, *line.band, color=colour(line.role), alpha=0.18, linewidth=0, zorder=1
        )
    axis.plot(
        line.x,
        line.y,
        color=colour(line.role),
        linestyle=(0, _DASHES[line.dash]) if line.dash != "solid" else "solid",
        # One layer, or one between two gaps, is no line.
        marker="o" if len(line.x) <= 2 * _MAX_TICKS else "",
        markersize=2.5,
        zorder=3 if line.dash == "solid" else 2,
    )


def _draw_mark(axis: Axes, mark: Mark) -> None:
    marker, filled = _SHAPES[mark.shape]
    axis.plot(
        [mark.x],
        [mark.y],
        marker=marker,
        linestyle="",
        color=colour(mark.role),
        markerfacecolor=colour(mark.role) if filled else "none",
        markeredgewidth=0.0 if filled else 1.1,
        gid=_tip(mark.tip),
        clip_on=False,
        zorder=4,
    )


def _draw_cell(axis: Axes, cell: Cell, columns: int) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    gap = 0.05 if columns <= 2 * _MOST_TEXTS else 0.0
    is_empty = cell.strength is None
    rectangle = Rectangle(
        (cell.column - 0.5 + gap / 2, cell.row - 0.46),
        1 - gap,
        0.92,
        facecolor=to_rgba(colour(cell.role), _STRONGEST * (cell.strength or 0.0)),
        edgecolor=colour(cell.role) if is_empty else "none",
        linewidth=0.6 if is_empty else 0.0,
        gid=_tip(cell.tip),
    )
    axis.add_patch(rectangle)
    if columns <= _MOST_TEXTS:
        axis.text(cell.column, cell.row, _plain(cell.text), ha="center", va="center", size=7.5)


def _tip(text: str) -> str:
    return _TIP + _plain(text)


def _plain(text: str) -> str:
    """A text that XML can hold, on one line."""
    return _CONTROL.sub("\ufffd", text)


def _local(name: str) -> str:
    """A tag or attribute without its name space."""
    return name.rpartition("}")[2]
