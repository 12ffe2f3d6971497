"""The number formats that a budget of bits has chosen: what quantize and export print of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from awq_edge.quantizer.report.choice import ChoiceReport


def print_choice(choice: ChoiceReport, console: Console) -> None:
    """Print how many blocks have which format, by the linears that share one."""
    for line in choice.lines():
        console.print(line, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("blocks with", style="bold", no_wrap=True)
    for title in choice.formats():
        table.add_column(title, justify="right", no_wrap=True)
    for group, counts in choice.counts().items():
        table.add_row(group, *(f"{counts[title]:,}" for title in choice.formats()))
    console.print(table)
