"""`awq-edge quantize MODEL`: AWQ weights, as a checkpoint that other tools read too."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.generated import Given, RunParameter, recipe_options
from awq_edge.cli.options import (
    CALIBRATION,
    OUTPUT,
    AllowUnknownKeysOption,
    CalibrationOption,
    JsonOption,
    ModelArgument,
    OutOption,
    RecipeOption,
)

if TYPE_CHECKING:
    from rich.console import Console

    from awq_edge.quantizer.report.schema import QuantizationReport


_NAMED = 5  # entries of a folder that a line names


def quantize(
    model: ModelArgument,
    out: OutOption,
    given: Annotated[Given, recipe_options("quantize")],
    run: RunParameter,
    recipe: RecipeOption = None,
    calibration: CalibrationOption = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Directory of pictures to calibrate a vision-language model with.  "
            "[default: drawn ones]",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    eval_text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Put the perplexity of this text, before and after, into the report; may be given "
            "several times. Loads the whole model.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    allow_unknown_keys: AllowUnknownKeysOption = False,
    json_to: JsonOption = None,
) -> None:
    """Quantize a model: AWQ scales and clips, weights of 2 to 8 bits, as other tools read them."""
    from awq_edge.cli.output import JsonTarget, open_console
    from awq_edge.cli.progress import block_progress
    from awq_edge.pipeline import quantize as quantize_stage
    from awq_edge.recipe.recipes import load_recipe

    target = JsonTarget(json_to, [model, calibration, images, *(eval_text or ())])
    with block_progress(open_console(stderr=True)) as observer:
        checkpoint = quantize_stage(
            model,
            out,
            load_recipe(recipe, **given),
            calibration=calibration,
            images=images,
            eval_texts=eval_text or (),
            allow_unknown_keys=allow_unknown_keys,
            run=replace(run, observer=observer),
        )
    console = target.console()
    target.write(checkpoint.report.model_dump_json(indent=2))
    print_report(checkpoint.report, checkpoint.path, console)


def print_report(report: QuantizationReport, path: Path, console: Console) -> None:
    """Print the quantization in a few lines, and the next command."""
    from awq_edge.cli.choice_table import print_choice
    from awq_edge.model.checkpoint import Checkpoint
    from awq_edge.model.group_size import coverage

    summary, choice = report.summary, report.choice
    bits, groups = f"{report.bits}-bit", f"group {report.group_size}"
    if choice is not None:
        bits, groups = f"{choice.widths} bits by", "groups chosen with the bits"
    console.print(
        f"{path}: {summary.quantized_linears} linears in {bits} {report.method}, {groups}, "
        f"{report.scheme}, {report.layout} format; {report.seconds:.0f} s",
        soft_wrap=True,
    )
    if choice is not None:
        print_choice(choice, console)
    if summary.mean_sqnr_db is not None and summary.mean_rtn_sqnr_db is not None:
        rounding = ""
        if report.method != "rtn":
            rounding = f", round-to-nearest {summary.mean_rtn_sqnr_db:.2f} dB"
        if summary.mean_nf4_sqnr_db is not None:
            rounding += f", NF4 {summary.mean_nf4_sqnr_db:.2f} dB"
        console.print(
            f"SQNR of the {report.errors_of}, mean: {summary.mean_sqnr_db:.2f} dB{rounding} "
            "(each linear: quantization_report.html)",
            soft_wrap=True,
        )
    for row in report.perplexities:
        console.print(
            f"perplexity of {row.text}: {row.quantized:.4f}, unquantized {row.original:.4f} "
            f"({row.quantized / row.original - 1:+.2%})",
            soft_wrap=True,
            markup=False,
        )
    decoder = Checkpoint.open(path).decoder
    console.print(_lm_head(report, decoder.architecture.lm_head), soft_wrap=True)
    notes = (*report.notes, *calibration_notes(report))
    for line in (*notes, *coverage(decoder, report.unquantized).lines()):
        console.print(line, soft_wrap=True, markup=False)
    silent = sum(len(block.silent_inputs) for block in report.blocks)
    if silent:
        console.print(
            f"{silent} inputs of experts saw no calibration token, their linears are rounded "
            "plainly; a larger --samples reaches more",
            soft_wrap=True,
        )
    console.print(f"next: awq-edge export {shlex.quote(str(path))} --out BUNDLE", soft_wrap=True)
    print_warnings(report, console)


def print_warnings(report: QuantizationReport, console: Console) -> None:
    """Print a report's warnings: last, where they are not read over."""
    for warning in report.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False)


def calibration_notes(report: QuantizationReport) -> list[str]:
    """The calibration's documents, read, written and skipped, in lines; none for the packaged text
    alone."""
    from awq_edge.quantizer.report.schema import PACKAGED

    drawn = report.calibration
    if drawn is None or drawn.source.startswith(PACKAGED):
        return []
    if drawn.own_samples:
        return [f"calibration: {drawn.source} (self_calibration.jsonl)"]
    documents = sum(file.documents for file in drawn.files)
    size = sum(file.bytes for file in drawn.files)
    lines = [
        f"calibration: {documents:,} document(s), {size:,} bytes of {len(drawn.files):,} file(s)"
    ]
    if drawn.left_out:
        named = [f"{name} ({why})" for name, why in drawn.left_out.items()]
        more = f" and {len(named) - _NAMED:,} more" if len(named) > _NAMED else ""
        lines.append(
            f"calibration: {len(named):,} of the folder's entries were left out: "
            f"{', '.join(named[:_NAMED])}{more}"
        )
    return lines


def _lm_head(report: QuantizationReport, name: str) -> str:
    """The output layer in one line."""
    head = report.lm_head
    if name in report.unquantized:
        return f"output layer: 16 bits: {report.unquantized[name]}"
    if head is None:
        return "output layer: 16 bits (an export rounds it; --lm-head-bits quantizes it here)"
    line = f"output layer: {head.bits}-bit, group {head.group_size}, {head.scheme}"
    (linear,) = head.block.linears
    return f"{line}, SQNR {linear.sqnr_db:.2f} dB, round-to-nearest {linear.rtn_sqnr_db:.2f} dB"
