"""`awq-edge eval`: how good a model is. `perplexity`: of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from awq_edge.evaluate.report import PerplexityReport

eval_app = typer.Typer(
    name="eval",
    help="How good a model is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@eval_app.callback()
def _eval() -> None:
    """How good a model, a checkpoint or a bundle is."""


@eval_app.command()
def perplexity(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_CHECKPOINT_OR_BUNDLE",
            help="Directory of any of the three, a hub id, or 'demo'.",
        ),
    ],
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text file to score.")],
    window: Annotated[
        int | None,
        typer.Option("--window", help="Tokens of one input. [default: 1024, or the context]"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", help="Tokens from window to window. [default: half a window]"),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Score only the text's first tokens.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cpu or cuda, for a model or checkpoint. [default: cpu]"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float32, float16 or bfloat16, for a model or checkpoint. [default: float32]",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads. [default: physical cores]")
    ] = None,
    json_to: Annotated[
        str | None,
        typer.Option("--json", metavar="-|FILE", help="Write the result as JSON."),
    ] = None,
) -> None:
    """Perplexity of a text over strided windows; the same number whatever runs the model."""
    from rich.console import Console

    from awq_edge.cli.output import JsonTarget
    from awq_edge.cli.progress import token_progress
    from awq_edge.evaluate.report import evaluate_perplexity

    target_json = JsonTarget(json_to)
    with token_progress(Console(stderr=True)) as progress:
        report = evaluate_perplexity(
            target,
            text,
            window=window,
            stride=stride,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
            threads=threads,
            progress=progress,
        )
    _print(report, target_json.console())
    target_json.write(report.model_dump_json(indent=2))


def _print(report: PerplexityReport, console: Console) -> None:
    model = report.model
    weights = "unquantized"
    if model.method is not None:
        weights = f"{model.bits}-bit {model.method}, group {model.group_size}"
    level = "" if model.accuracy_level is None else f", accuracy level {model.accuracy_level}"
    console.print(f"perplexity {report.perplexity:.4f}", style="bold")
    bits = "" if report.bits_per_byte is None else f"{report.bits_per_byte:.4f} bits per byte; "
    console.print(
        f"{bits}{report.tokens:,} tokens, window {report.window}, stride {report.stride}; "
        f"{report.seconds:.1f} s ({report.tokens_per_second:,.0f} tokens/s)",
        soft_wrap=True,
    )
    console.print(
        f"{model.kind} {model.path}: {weights}, {model.dtype}{level}, {model.runtime} on "
        f"{model.device}",
        soft_wrap=True,
    )
