"""Options that commands share, each declared once, and the groups in which `--help` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from awq_edge.quantizer.run_options import RunOptions

# Groups of options.
MODEL = "What it does to the model"
WHERE = "Where it runs"
CALIBRATION = "Calibration"
SAMPLING = "Sampling"
OUTPUT = "Output"

ModelArgument = Annotated[
    str, typer.Argument(help="Directory of a model or checkpoint, a hub id, or 'demo'.")
]
BundleArgument = Annotated[str, typer.Argument(help="Directory made by `awq-edge export`.")]
OutOption = Annotated[
    Path, typer.Option(help="Directory that the command makes.", rich_help_panel=OUTPUT)
]
JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        help="Write the result as JSON; - : alone, out.",
        rich_help_panel=OUTPUT,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Target device; see `awq-edge recipes`.  [default: cpu; with --runtime cuda: cuda]",
        rich_help_panel=WHERE,
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        metavar="self|packaged|PATH|hub:NAME",
        help="The model's own samples, the packaged text, a text or .jsonl file, folder of such "
        "files, or hub data set.  [default: self where it takes minutes, else packaged]",
        rich_help_panel=CALIBRATION,
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda or cuda:N, to quantize on.", rich_help_panel=WHERE)
]

# Of a bundle that runs: run, chat, serve and bench.
ContextOption = Annotated[
    int | None,
    typer.Option(help="Tokens of the KV cache.  [default: as exported]", rich_help_panel=WHERE),
]
AllowUnknownKeysOption = Annotated[
    bool,
    typer.Option(
        "--allow-unknown-keys",
        help="Ignore keys of config.json that only a newer transformers may know.",
        rich_help_panel=MODEL,
    ),
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Compare a checkpoint's weights with its report's hashes.",
        rich_help_panel=MODEL,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", help="CPU threads.  [default: physical cores]", rich_help_panel=WHERE
    ),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        help="Tokens of one answer.  [default: until the model stops; run: 128, or as many as fit]"
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        help="Repeats a drawn text.  [default: random, reported by run]", rich_help_panel=SAMPLING
    ),
]
StopOption = Annotated[
    list[str] | None, typer.Option(help="End before this text; may be given several times.")
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A Jinja file in place of the model's own template."),
]
TemplateVariablesOption = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="What the template knows beside the messages: '{\"enable_thinking\": false}'.",
    ),
]


def run_options(
    device: DeviceOption = "cpu",
    executor: Annotated[
        str,
        typer.Option(
            help="local: this process; ray: the machines of a Ray cluster. Same result.",
            rich_help_panel=WHERE,
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="A Ray cluster that runs.  [default: RAY_ADDRESS, or one for this run, here]",
            rich_help_panel=WHERE,
        ),
    ] = None,
    ray_blocks: Annotated[
        int | None,
        typer.Option(
            help="Blocks in work at a time.  [default: as many as there is room for]",
            rich_help_panel=WHERE,
        ),
    ] = None,
    ray_gpus: Annotated[
        float,
        typer.Option(
            help="Share of a GPU that a Ray task gets, with --device cuda.", rich_help_panel=WHERE
        ),
    ] = 1.0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume",
            help="Keep the finished blocks of a run that was interrupted.",
            rich_help_panel=OUTPUT,
        ),
    ] = True,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a checkpoint or bundle of awq-edge that --out is.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> RunOptions:
    """The options of a run, for a parameter that is `Made` of them."""
    from awq_edge.quantizer.cluster.options import ExecutorOptions
    from awq_edge.quantizer.run_options import RunOptions

    workers = ExecutorOptions(executor, ray_address, ray_blocks, ray_gpus)
    return RunOptions(device, workers, resume, overwrite)


def check_answer_options(
    max_new_tokens: int | None, seed: int | None = None, stop: Sequence[str] | None = None
) -> None:
    """Raise ConfigError, naming the flag, for an answer that no model can give."""
    from awq_edge.errors import ConfigError

    if max_new_tokens is not None and max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {max_new_tokens}: must be 1 or more")
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed {seed}: must be 0 or more")
    if "" in (stop or ()):
        raise ConfigError("--stop: the text is empty; give one of one character or more")


def template_variables(text: str | None) -> dict[str, Any] | None:
    """The object of --chat-template-kwargs. Raises ConfigError for what is none."""
    from awq_edge.artifacts.input_files import parse_json
    from awq_edge.errors import ConfigError

    return None if text is None else parse_json(text, "--chat-template-kwargs", ConfigError)
