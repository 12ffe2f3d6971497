"""`awq-edge eval`: how good a model is. `perplexity`: of a text. `divergence`: from a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

eval_app = typer.Typer(
    name="eval",
    help="How good a model is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_TARGET = "MODEL_OR_CHECKPOINT_OR_BUNDLE"

TargetArgument = Annotated[
    str,
    typer.Argument(metavar=_TARGET, help="Directory of any of the three, a hub id, or 'demo'."),
]
TextOption = Annotated[Path, typer.Option("--text", help="UTF-8 text file to score.")]
WindowOption = Annotated[
    int | None,
    typer.Option("--window", help="Tokens of one input. [default: 1024, or the context]"),
]
StrideOption = Annotated[
    int | None,
    typer.Option("--stride", help="Tokens from window to window. [default: half a window]"),
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", help="Score only the text's first tokens.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu or cuda, for a model or checkpoint. [default: cpu]"),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, float16 or bfloat16, for a model or checkpoint. [default: float32]",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="CPU threads. [default: physical cores]")
]
JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="-|FILE", help="Write the result as JSON.")
]


@eval_app.callback()
def _eval() -> None:
    """How good a model, a checkpoint or a bundle is."""


@eval_app.command()
def perplexity(
    target: TargetArgument,
    text: TextOption,
    window: WindowOption = None,
    stride: StrideOption = None,
    max_tokens: MaxTokensOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    json_to: JsonOption = None,
) -> None:
    """Perplexity of a text over strided windows; the same number whatever runs the model."""
    from rich.console import Console

    from awq_edge.cli.eval_print import print_perplexity
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
    print_perplexity(report, target_json.console())
    target_json.write(report.model_dump_json(indent=2))


@eval_app.command()
def divergence(
    target: TargetArgument,
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            metavar=_TARGET,
            help="What it is compared with: most often the model before it was quantized.",
        ),
    ],
    text: TextOption,
    window: WindowOption = None,
    stride: StrideOption = None,
    max_tokens: MaxTokensOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    json_to: JsonOption = None,
) -> None:
    """KL divergence and top-1 agreement with a reference, on the tokens of a text."""
    from rich.console import Console

    from awq_edge.cli.eval_print import print_divergence
    from awq_edge.cli.output import JsonTarget
    from awq_edge.cli.progress import token_progress
    from awq_edge.evaluate.divergence_report import evaluate_divergence

    target_json = JsonTarget(json_to)
    with token_progress(Console(stderr=True)) as progress:
        report = evaluate_divergence(
            target,
            reference,
            text,
            window=window,
            stride=stride,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
            threads=threads,
            progress=progress,
        )
    print_divergence(report, target_json.console())
    target_json.write(report.model_dump_json(indent=2))
