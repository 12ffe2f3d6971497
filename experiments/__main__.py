"""`python -m experiments`, in a checkout: the AWQ paper's experiments on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli import new_app, run_app
from awq_edge.cli.options import DeviceOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.result import StudyReport
    from experiments.tables import Table


app = new_app("python -m experiments", "The AWQ paper's experiments on a small model.")


@app.command()
def study(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]...",
            help="methods, salience, fixed-s, group-size, int2, calibration-size, "
            "calibration-domain, propagation.  [default: all]",
        ),
    ] = None,
    *,
    held_out: Annotated[Path, typer.Option(help="UTF-8 text to score, of the model's own domain.")],
    model: Annotated[
        str, typer.Option(help="A small model: directory, hub id, or 'demo'.")
    ] = "demo",
    text: Annotated[
        Path | None, typer.Option(help="Text of another domain, for calibration-domain.")
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="packaged|PATH|hub:NAME",
            help="Text to calibrate with; given again: another, for calibration-domain.  "
            "[default: packaged]",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Calibration samples of 512 tokens.  [default: 128]")
    ] = None,
    salient: Annotated[
        bool,
        typer.Option(help="Also a variant of the model with salient channels."),
    ] = True,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a text that are scored.  [default: 20000]")
    ] = None,
    device: DeviceOption = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for study.json, study.md and an SVG plot per experiment."),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Compare methods, formats and calibration on a small model, as the AWQ paper does."""
    from awq_edge.cli.output import JsonTarget, open_console
    from awq_edge.cli.progress import block_progress
    from awq_edge.process.interruption import keeping
    from experiments.run import MAX_TOKENS, check_results, run_study, write_results
    from experiments.tables import table_of
    from experiments.workbench import DEFAULT_SAMPLES

    reads = [model, held_out, text, *(calibration or ())]
    target = JsonTarget(json_to, reads)
    if out is not None:
        check_results(out, reads)
    console = target.console()

    def finished(report: StudyReport) -> None:
        experiment = report.experiments[-1]
        print_table(experiment.name, table_of(experiment), console)
        if out is not None:
            write_results(report, out)

    kept = (
        "nothing is kept, for want of --out"
        if out is None
        else f"finished experiments are in {out}; name those that are missing to go on"
    )
    with keeping(lambda: kept), block_progress(open_console(stderr=True)) as observe:
        report = run_study(
            names or (),
            model=model,
            held_out=held_out,
            text=text,
            calibrations=calibration or (),
            samples=samples or DEFAULT_SAMPLES,
            salient=salient,
            max_tokens=max_tokens or MAX_TOKENS,
            device=device,
            observer=observe,
            finished=finished,
        )
    target.write(report.model_dump_json(indent=2))


def print_table(name: str, table: Table, console: Console) -> None:
    """The table of one experiment."""
    from rich.table import Table as RichTable

    shown = RichTable(title=f"{name}: {table.title}", title_justify="left")
    for index, header in enumerate(table.header):
        shown.add_column(header, justify="left" if index == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


if __name__ == "__main__":
    run_app(app)
