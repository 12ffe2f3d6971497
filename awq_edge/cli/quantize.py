"""`awq-edge quantize MODEL`: AWQ weights, as a checkpoint that other tools read too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from awq_edge.quantizer.report import QuantizationReport


def quantize(
    model: Annotated[str, typer.Argument(help="Directory of a model, a hub id, or 'demo'.")],
    out: Annotated[Path, typer.Option(help="Directory of the checkpoint, made by this command.")],
    recipe: Annotated[str, typer.Option(help="Target device; see `awq-edge recipes`.")] = "cpu",
    method: Annotated[
        str | None,
        typer.Option(help="awq, gptq, awq+gptq, or rtn (plain).  [default: the recipe's]"),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Bits of a weight: 4.  [default: the recipe's]")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Input channels that share a scale: 32, 64, 128.  [default: the recipe's]"
        ),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="asymmetric or symmetric.  [default: the recipe's]")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|hub:NAME",
            help="Text file, directory of text files, or hub data set.  [default: packaged text]",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Calibration sequences.  [default: the recipe's]")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of one sequence.  [default: the recipe's]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draws the sequences.  [default: the recipe's]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.  [default: cpu]")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what --out holds.")
    ] = False,
    json_to: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write the report as JSON; - : alone, out."),
    ] = None,
) -> None:
    """Quantize a model: AWQ scales and clips, 4-bit weights, the AutoAWQ checkpoint layout."""
    from rich.console import Console

    from awq_edge.cli.output import JsonTarget
    from awq_edge.cli.progress import block_progress
    from awq_edge.pipeline import quantize as quantize_stage

    target = JsonTarget(json_to)
    with block_progress(Console(stderr=True)) as observer:
        checkpoint = quantize_stage(
            model,
            out,
            recipe=recipe,
            method=method,
            bits=bits,
            group_size=group_size,
            scheme=scheme,
            calibration=calibration,
            samples=samples,
            length=length,
            seed=seed,
            device=device,
            overwrite=overwrite,
            observer=observer,
        )
    console = Console(stderr=target.owns_stdout, highlight=False)
    print_report(checkpoint.report, checkpoint.path, console)
    target.write(checkpoint.report.model_dump_json(indent=2))


def print_report(report: QuantizationReport, path: Path, console: Console) -> None:
    """What was done in a few lines, and the next command."""
    summary = report.summary
    console.print(
        f"{path}: {summary.quantized_linears} linears in {report.bits}-bit {report.method}, group "
        f"{report.group_size}, {report.scheme}; {report.seconds:.0f} s",
        soft_wrap=True,
    )
    if summary.mean_sqnr_db is not None and summary.mean_rtn_sqnr_db is not None:
        rounding = ""
        if report.method != "rtn":
            rounding = f", round-to-nearest {summary.mean_rtn_sqnr_db:.2f} dB"
        console.print(
            f"SQNR of the {report.errors_of}, mean: {summary.mean_sqnr_db:.2f} dB{rounding} "
            "(each linear: quantization_report.json)",
            soft_wrap=True,
        )
    reasons: dict[str, int] = {}
    for reason in report.unquantized.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        console.print(f"{count} linears stay in 16 bits: {reason}", soft_wrap=True)
    console.print(f"next: awq-edge export {path} --out BUNDLE", soft_wrap=True)
