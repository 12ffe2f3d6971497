"""`awq-edge eval`: how good a model is.

perplexity: of a text. divergence: from a reference. tasks: in benchmarks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from awq_edge.cli.generated import GroupedCommand
from awq_edge.cli.options import AllowUnknownKeysOption, JsonOption, ThreadsOption, VerifyOption

eval_app = typer.Typer(
    name="eval",
    help="How good a model is.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_TARGET = "MODEL_OR_CHECKPOINT_OR_BUNDLE"

TargetArgument = Annotated[
    str,
    typer.Argument(metavar=_TARGET, help="Directory of any of the three, a hub id, or 'demo'."),
]
TextOption = Annotated[
    Path,
    typer.Option("--text", help="File to score: UTF-8 text, or .jsonl with one document a line."),
]
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


@eval_app.callback()
def _eval() -> None:
    """How good a model, a checkpoint or a bundle is."""


@eval_app.command(cls=GroupedCommand)
def perplexity(
    target: TargetArgument,
    text: TextOption,
    window: WindowOption = None,
    stride: StrideOption = None,
    max_tokens: MaxTokensOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    verify: VerifyOption = True,
    allow_unknown_keys: AllowUnknownKeysOption = False,
    json_to: JsonOption = None,
) -> None:
    """Perplexity of a text over strided windows; the same number whatever runs the model."""
    from awq_edge.cli.eval_print import print_perplexity
    from awq_edge.cli.output import JsonTarget, open_console
    from awq_edge.cli.progress import token_progress
    from awq_edge.evaluate.report import evaluate_perplexity

    target_json = JsonTarget(json_to, [target, text])
    with token_progress(open_console(stderr=True)) as progress:
        report = evaluate_perplexity(
            target,
            text,
            window=window,
            stride=stride,
            max_tokens=max_tokens,
            device=device,
            dtype=dtype,
            threads=threads,
            allow_unknown_keys=allow_unknown_keys,
            verify=verify,
            progress=progress,
        )
    target_json.write(report.model_dump_json(indent=2))
    print_perplexity(report, target_json.console())


@eval_app.command(cls=GroupedCommand)
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
    verify: VerifyOption = True,
    allow_unknown_keys: AllowUnknownKeysOption = False,
    json_to: JsonOption = None,
) -> None:
    """KL divergence and top-1 agreement with a reference, on the tokens of a text."""
    from awq_edge.cli.eval_print import print_divergence
    from awq_edge.cli.output import JsonTarget, open_console
    from awq_edge.cli.progress import token_progress
    from awq_edge.evaluate.divergence_report import evaluate_divergence

    target_json = JsonTarget(json_to, [target, reference, text])
    with token_progress(open_console(stderr=True)) as progress:
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
            allow_unknown_keys=allow_unknown_keys,
            verify=verify,
            progress=progress,
        )
    target_json.write(report.model_dump_json(indent=2))
    print_divergence(report, target_json.console())


@eval_app.command(cls=GroupedCommand)
def tasks(
    target: TargetArgument,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            metavar="NAME[,NAME]",
            help="Tasks or groups of lm-eval (gsm8k, mbpp, mmlu_*), or yours: --include-path.",
        ),
    ],
    include_path: Annotated[
        Path | None,
        typer.Option(
            "--include-path", metavar="DIR", help="Folder with task files (YAML) of yours."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first documents of each task.")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", help="Examples in the prompt. [default: the task's]"),
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option("--apply-chat-template", help="Ask through the model's chat template."),
    ] = False,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution",
            help="Let tasks like mbpp run the code that the model writes: on this machine, with "
            "your rights, whatever it does.",
        ),
    ] = False,
    context: Annotated[
        int | None,
        typer.Option("--context", help="Tokens of prompt and answer. [default: the model's]"),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Sequences at a time; a bundle runs one.")
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Draws examples and sampled answers. [default: lm-eval's]"),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    verify: VerifyOption = True,
    allow_unknown_keys: AllowUnknownKeysOption = False,
    json_to: JsonOption = None,
) -> None:
    """Benchmark tasks by lm-evaluation-harness: GSM8K, MBPP, and any other that it knows."""
    from awq_edge.cli.eval_print import print_tasks
    from awq_edge.cli.output import JsonTarget, open_console, say
    from awq_edge.cli.progress import block_progress
    from awq_edge.evaluate.tasks import DEFAULT_SEED, evaluate_tasks

    target_json = JsonTarget(json_to, [target, include_path])
    console = open_console(stderr=True)
    with block_progress(console) as progress:
        report = evaluate_tasks(
            target,
            tasks.split(","),
            include_path=include_path,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            allow_code_execution=allow_code_execution,
            context=context,
            batch_size=batch_size,
            seed=DEFAULT_SEED if seed is None else seed,
            device=device,
            dtype=dtype,
            threads=threads,
            allow_unknown_keys=allow_unknown_keys,
            verify=verify,
            progress=progress,
        )
    target_json.write(report.model_dump_json(indent=2))
    print_tasks(report, target_json.console())
    for warning in report.warnings:
        say(f"lm-eval: {warning}", stderr=True)
