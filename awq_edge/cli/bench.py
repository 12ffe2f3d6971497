"""`awq-edge bench BUNDLE`, `awq-edge bench compare A B` and `awq-edge bench page FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from awq_edge.cli.generated import GroupedCommand
from awq_edge.cli.options import (
    OUTPUT,
    BundleArgument,
    ContextOption,
    JsonOption,
    ThreadsOption,
)

_MEASURE = "measure"


class _BenchGroup(typer.core.TyperGroup):
    """A word that is no subcommand is the bundle to measure (one named "compare": ./compare)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands:
            args = [_MEASURE, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        # Its help says `awq-edge bench [OPTIONS] BUNDLE`, as it is typed.
        return "" if name == _MEASURE else name, command, rest


bench_app = typer.Typer(
    name="bench",
    help="Measure a bundle, compare two measurements.",
    cls=_BenchGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@bench_app.command(
    name=_MEASURE,
    cls=GroupedCommand,
    hidden=True,
    epilog="`awq-edge bench compare A.json B.json` says what changed between two measurements; "
    "`awq-edge bench page A.json --html FILE` draws the page of one.",
)
def measure(
    bundle: BundleArgument,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Prompt lengths, tokens.  [default: those of 32,128,512,2048 that fit]",
        ),
    ] = None,
    generated: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Tokens to generate.  [default: 64, if they fit]"),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds that count.")] = 5,
    warmup: Annotated[int, typer.Option(help="Rounds before them that do not.")] = 1,
    seed: Annotated[int, typer.Option(help="Draws the prompts' token ids.")] = 0,
    sample_interval: Annotated[
        float, typer.Option(help="Seconds between two looks at memory and sensors.")
    ] = 0.1,
    context: ContextOption = None,
    threads: ThreadsOption = None,
    json_to: JsonOption = None,
    csv_to: Annotated[
        str | None,
        typer.Option(
            "--csv", metavar="FILE", help="Write one row a cell as CSV.", rich_help_panel=OUTPUT
        ),
    ] = None,
    html_to: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write one page; plots need matplotlib.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Measure a bundle: prefill, decode, latency, memory, energy, by prompt and length."""
    from awq_edge.bench.page import bench_page
    from awq_edge.bench.plan import parse_lengths
    from awq_edge.bench.run import bench
    from awq_edge.bench.table_csv import to_csv
    from awq_edge.cli.bench_table import print_bench
    from awq_edge.cli.interrupt import Interrupt
    from awq_edge.cli.output import FileTarget, JsonTarget, open_console
    from awq_edge.cli.progress import block_progress, build_progress

    target = JsonTarget(json_to, [bundle])
    csv_target = FileTarget("--csv", csv_to, [bundle])
    html_target = FileTarget("--html", html_to, [bundle])
    errors = open_console(stderr=True)
    lengths = parse_lengths("--prompt", prompt), parse_lengths("--generated", generated)
    with (
        Interrupt() as interrupt,
        build_progress(errors) as building,
        block_progress(errors) as progress,
    ):
        report = bench(
            bundle,
            prompt_lengths=lengths[0],
            generated_lengths=lengths[1],
            repeats=repeats,
            warmup=warmup,
            seed=seed,
            sample_interval=sample_interval,
            context=context,
            threads=threads,
            cancelled=interrupt.requested,
            observer=progress,
            build_observer=building,
        )
    # The files first: whoever reads the table may close the pipe (`| head`).
    target.write(report.model_dump_json(indent=1), interrupted=report.interrupted)
    csv_target.write(to_csv(report).removesuffix("\n"), interrupted=report.interrupted)
    if html_to is not None:
        html_target.write(bench_page(report), interrupted=report.interrupted)
    print_bench(report, target.console())
    if report.interrupted:
        raise typer.Exit(interrupt.exit_code)


@bench_app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The earlier report.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The later one.")],
    alpha: Annotated[float, typer.Option(help="Level of the rank test.")] = 0.01,
    min_change: Annotated[
        float, typer.Option(help="Medians that differ by less have not changed.")
    ] = 0.02,
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="Exit with 1 when something is worse.")
    ] = False,
    json_to: JsonOption = None,
) -> None:
    """Say what changed between two reports, and whether it is more than their spread."""
    from awq_edge.bench.compare import compare as compare_reports
    from awq_edge.bench.report import read_bench_report
    from awq_edge.cli.bench_table import print_comparison
    from awq_edge.cli.output import JsonTarget
    from awq_edge.errors import ConfigError

    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha {alpha}: must be between 0 and 1")
    if min_change < 0:
        raise ConfigError(f"--min-change {min_change}: must be 0 or more")
    target = JsonTarget(json_to, [before, after])
    comparison = compare_reports(
        read_bench_report(before), read_bench_report(after), alpha=alpha, min_change=min_change
    )
    print_comparison(comparison, target.console())
    target.write(comparison.model_dump_json(indent=1))
    if fail_on_regression and comparison.regressions:
        raise typer.Exit(1)


@bench_app.command()
def page(
    report: Annotated[Path, typer.Argument(metavar="FILE.json", help="A report of `bench`.")],
    html_to: Annotated[str, typer.Option("--html", metavar="FILE", help="The page to write.")],
) -> None:
    """Draw the page of a report again: where matplotlib is, for a device that has none."""
    from awq_edge.bench.page import bench_page
    from awq_edge.bench.report import read_bench_report
    from awq_edge.cli.output import FileTarget, say

    target = FileTarget("--html", html_to, [report])
    target.write(bench_page(read_bench_report(report)))
    say(f"written: {html_to}")
