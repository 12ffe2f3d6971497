"""`awq-edge doctor`: what this machine is, and what is missing on it for which step."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from awq_edge.doctor.report import DoctorReport

_STYLES = {
    "ok": "green",
    "missing": "bold red",
    "warning": "yellow",
    "optional": "dim",
    "failed": "bold red",
}
_PIPE_WIDTH = 200  # columns where there is no terminal to ask


def doctor(
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Device to hold this machine against.  [default: the one it seems to be]"
        ),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Show what this machine is and what is missing for which step, with the command that fixes it.

    The exit code is 0 whatever is found.
    """
    from awq_edge.cli.output import JsonTarget
    from awq_edge.doctor.run import examine

    target = JsonTarget(json_to)
    report = examine(recipe_name=recipe)
    print_doctor(report, target.console())
    target.write(report.model_dump_json(indent=2))


def print_doctor(report: DoctorReport, console: Console) -> None:
    """One table; a line for what to do first."""
    from rich.table import Table
    from rich.text import Text

    if not sys.stdout.isatty():
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(f"recipe: {report.recipe} ({report.recipe_reason})", soft_wrap=True)
    console.print()
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "status", "found", "needed for", "fix"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", "status"))
    for row in report.rows:
        status = Text(row.status, style=_STYLES[row.status])
        table.add_row(row.check, status, row.found, row.needed_for, row.fix)
    console.print(table)
    console.print()
    if report.ready:
        console.print(f"nothing that recipe {report.recipe} needs is missing")
        return
    wanting = [row.check for row in report.rows if row.status in ("missing", "failed")]
    console.print(f"missing for recipe {report.recipe}: {', '.join(wanting)}", soft_wrap=True)
