"""The tables of `awq-edge fit`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from awq_edge.units import format_bandwidth, size_text

if TYPE_CHECKING:
    from rich.console import Console

    from awq_edge.fit.report import ChangePart, FitCell, FitReport, FitTable

_WORDS = {
    "fits": "fits",
    "tight": "tight",
    "with_swap": "fits, with swap for the build",
    "refused": "refused",
    "does_not_fit": "does not fit",
}
_PIPE_WIDTH = 200  # columns where there is no terminal to ask: no row is broken
# Two of these are the same device with another software.
_SAME_DEVICE = "-jetpack6"


def print_fit(report: FitReport, console: Console) -> None:
    """One model on one device."""
    model, settings, device = report.model, report.settings, report.device
    console.print(
        f"{model.name} ({_count(model.parameters)} parameters, {model.model_type}) on "
        f"{device.description}",
        soft_wrap=True,
    )
    console.print(f"config: {model.source}", soft_wrap=True)
    weights = (
        f"unquantized, {settings.activation_dtype}"
        if settings.group_size is None
        else f"{settings.bits} bits, groups of {settings.group_size}, {settings.scheme}"
    )
    console.print(
        f"weights: {weights}; lm_head: {settings.lm_head_bits} bits; runtime {settings.runtime}; "
        f"context {settings.context:,}, KV cache {settings.kv_cache_dtype}",
        soft_wrap=True,
    )
    console.print()
    console.print(_memory(report))
    console.print()
    console.print(f"{_WORDS[report.verdict]}: {report.reason}", style="bold", soft_wrap=True)
    for line in _lines(report):
        console.print(line, soft_wrap=True)
    if report.changes:
        console.print()
        wide = console if sys.stdout.isatty() else _wide(console)
        wide.print(_changes(report.changes))


def _memory(report: FitReport) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    predicted, device = report.predicted_bytes, report.device
    for part, size in report.weight_bytes.items():
        if not size:
            continue
        table.add_row(f"weights: {part}", size_text(size))
    context = report.settings.context
    table.add_row(f"KV cache, {context:,} tokens", size_text(predicted.kv_cache))
    table.add_row(
        f"activations, {report.settings.prefill_chunk:,} tokens",
        size_text(predicted.activations),
    )
    table.add_row("runtime", size_text(predicted.overhead))
    table.add_row("needed", size_text(predicted.total), style="bold")
    kind = "memory, shared with the CPU" if device.unified_memory else "memory"
    origin = "" if device.memory_source == "recipe" else " (of this machine)"
    table.add_row(f"{kind}{origin}", size_text(device.memory_bytes))
    table.add_row("kept by the system", size_text(device.system_reserved_bytes))
    table.add_row("usable", size_text(device.usable_bytes), style="bold")
    return table


def _lines(report: FitReport) -> Iterable[str]:
    ends = "the model's own" if report.max_context_limit == "model" else "by memory"
    for step in report.steps:
        if step.takes_it and step.words and not step.swap_bytes:
            yield f"{step.step}: {step.words}"
    if report.max_context:
        yield f"longest context: {report.max_context:,} tokens ({ends})"
    roofline, device = report.roofline_tokens_per_s, report.device
    if roofline is not None and device.bandwidth_bytes_per_s is not None:
        bandwidth = _bandwidth(device.bandwidth_bytes_per_s)
        yield (
            f"roofline: {roofline.empty:.1f} tokens/s with an empty cache, {roofline.full:.1f} "
            f"with {roofline.context:,} tokens ({bandwidth}, {device.bandwidth_source})"
        )
    for mode in report.power_modes:
        default = ", the default" if mode.default else ""
        yield f"  in power mode {mode.name}{default}: {mode.roofline_empty:.1f} tokens/s"
    if report.cheapest_change is not None:
        change = report.cheapest_change
        yield f"cheapest change that makes it fit: {change.change}: {change.options}"
    elif report.changes:
        yield "no change that a runtime here has makes it fit; take a smaller model"
    yield from (f"note: {note}" for note in report.notes)


def _changes(changes: Iterable[ChangePart]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("change")
    for heading in ("needs", "longest context"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fits")
    table.add_column("cost in quality, on the demo model (44.2 in 16 bits)")
    for change in changes:
        fits = "yes" if change.makes_it_fit else "no"
        table.add_row(
            change.change if change.available else f"{change.change} (not built)",
            size_text(change.total_bytes),
            f"{change.max_context:,}",
            fits,
            change.quality,
        )
    return table


def print_table(table: FitTable, console: Console) -> None:
    """Models by devices; of a single model a row a device with more figures."""
    models = list(dict.fromkeys(cell.model for cell in table.cells))
    wide = console if sys.stdout.isatty() else _wide(console)
    if len(models) == 1:
        wide.print(_devices(table.cells))
    else:
        wide.print(_matrix(models, table.cells))
        console.print(
            "longest context in tokens (k: 1024); ~ tight: little to spare, or less than the "
            "recipe's context; + the build on the board needs swap on a disk; x a step refuses it; "
            "-: does not fit. `awq-edge fit MODEL --recipe NAME` says why",
            soft_wrap=True,
        )
    for reason in table.skipped.values():
        console.print(f"left out: {reason}", soft_wrap=True)


def _wide(console: Console) -> Console:
    console.width = max(console.width, _PIPE_WIDTH)
    return console


def _devices(cells: Iterable[FitCell]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for heading in ("needs", "usable", "longest context", "roofline, tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in cells:
        rate = cell.roofline_tokens_per_s
        table.add_row(
            cell.recipe,
            _WORDS[cell.verdict],
            size_text(cell.total_bytes),
            size_text(cell.usable_bytes),
            f"{cell.max_context:,}",
            "-" if rate is None else f"{rate:.1f}",
        )
    return table


def _matrix(models: list[str], cells: Iterable[FitCell]) -> Table:
    """A column for each device; those that agree in every cell share one."""
    by_recipe: dict[str, dict[str, str]] = {}
    for cell in cells:
        if not cell.recipe.endswith(_SAME_DEVICE):
            by_recipe.setdefault(cell.recipe, {})[cell.model] = _cell(cell)
    columns: dict[tuple[str, ...], list[str]] = {}
    for recipe, row in by_recipe.items():
        columns.setdefault(tuple(row[model] for model in models), []).append(recipe)
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for recipes in columns.values():
        heading = Text("\n".join(_short(recipe) for recipe in recipes), justify="right")
        table.add_column(heading, justify="right")
    for index, model in enumerate(models):
        table.add_row(model, *(values[index] for values in columns))
    return table


def _short(recipe: str) -> str:
    return recipe.removeprefix("jetson-").removeprefix("rtx-").replace("-laptop", "")


def _cell(cell: FitCell) -> str:
    if cell.verdict == "does_not_fit":
        return "-"
    tokens = cell.max_context
    words = f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)
    return {"tight": f"~{words}", "with_swap": f"{words}+", "refused": "x"}.get(cell.verdict, words)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _bandwidth(rate: float) -> str:
    whole = int(rate)
    return format_bandwidth(whole) if rate == whole else f"{rate / 1e9:.1f} GB/s"
