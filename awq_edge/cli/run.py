"""`awq-edge run BUNDLE`: generate once, then report what it took."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from awq_edge.cli.generated import SamplingOptions
from awq_edge.cli.options import (
    BundleArgument,
    ChatTemplateOption,
    ContextOption,
    JsonOption,
    MaxNewTokensOption,
    SeedOption,
    StopOption,
    TemplateVariablesOption,
    ThreadsOption,
    check_answer_options,
    template_variables,
)

# What a bare `awq-edge run BUNDLE` continues.
_DEFAULT_PROMPT = "Once upon a time"
_LARGEST_PROMPT = 64_000_000  # bytes


def run(
    bundle: BundleArgument,
    sampling: SamplingOptions,
    prompt: Annotated[
        str | None, typer.Option(help=f'Text to start from.  [default: "{_DEFAULT_PROMPT}"]')
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="Read the prompt from a file, or standard input."),
    ] = None,
    max_new_tokens: MaxNewTokensOption = None,
    sample: Annotated[
        bool,
        typer.Option("--sample", help="Draw as chat and serve do; else the likeliest token."),
    ] = False,
    seed: SeedOption = None,
    stop: StopOption = None,
    chat_template: ChatTemplateOption = None,
    chat_template_kwargs: TemplateVariablesOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="Send the prompt through the model's chat template, or as it is.  "
            "[default: --chat where there is a template]",
        ),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Generate on where the model would stop.")
    ] = False,
    json_to: JsonOption = None,
) -> None:
    """Run a bundle on a prompt: the text as it comes, then what it took."""
    from awq_edge.artifacts.sampling_keys import check_sampling
    from awq_edge.cli.interrupt import Interrupt
    from awq_edge.cli.output import AnswerWriter, JsonTarget, open_console
    from awq_edge.cli.progress import build_progress
    from awq_edge.cli.run_table import print_report
    from awq_edge.cli.thought_writer import ThoughtWriter
    from awq_edge.run.run import PromptFormat
    from awq_edge.run.run import run as run_stage

    target = JsonTarget(json_to, [bundle, prompt_file])
    text = _prompt(prompt, prompt_file)
    formats: dict[bool | None, PromptFormat] = {None: "auto", True: "chat", False: "raw"}
    keys = check_sampling(sampling)
    check_answer_options(max_new_tokens, seed, stop)
    variables = template_variables(chat_template_kwargs)
    out = AnswerWriter(target.text_stream)

    thoughts = ThoughtWriter(shown=True)

    def show(piece: str) -> None:
        thoughts.end()
        out.write(piece)

    with Interrupt() as interrupt, build_progress(open_console(stderr=True)) as building:
        report = run_stage(
            bundle,
            text,
            prompt_format=formats[chat],
            max_new_tokens=max_new_tokens,
            sampling=keys,
            sample=sample,
            seed=seed,
            stop=stop or (),
            ignore_eos=ignore_eos,
            chat_template=chat_template,
            variables=variables,
            context=context,
            threads=threads,
            on_text=show,
            on_thought=thoughts.write,
            cancelled=interrupt.requested,
            observer=building,
        )
    thoughts.end()
    out.write("\n\n")
    interrupted = report.result.finish_reason == "cancelled"
    target.write(report.model_dump_json(indent=2), interrupted=interrupted)
    print_report(report, target.console())
    if interrupted:
        raise typer.Exit(interrupt.exit_code)


def _prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The prompt of the flags. Raises ConfigError when it is empty, doubled or unreadable."""
    from awq_edge.errors import ConfigError

    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file exclude each other; give one of them")
    if prompt_file is not None:
        text, source = _read(prompt_file), f"--prompt-file {prompt_file}"
    else:
        text, source = _DEFAULT_PROMPT if prompt is None else prompt, "--prompt"
    if not text.strip():
        raise ConfigError(f"{source}: the prompt is empty; give it some text")
    return text


def _read(path: str) -> str:
    """The text of a plain file, or of standard input, without the line end that editors put behind
    it."""
    from awq_edge.artifacts.input_files import decode, read_bytes
    from awq_edge.artifacts.paths import user_path
    from awq_edge.errors import ConfigError

    flag = "--prompt-file"
    name = f"{flag} {path}"
    if path == "-":
        data = sys.stdin.buffer.read(_LARGEST_PROMPT + 1)
        if len(data) > _LARGEST_PROMPT:
            raise ConfigError(f"{name}: has more than {_LARGEST_PROMPT:,} bytes; give less")
    else:
        file = user_path(path, flag)
        data = read_bytes(file, limit=_LARGEST_PROMPT, error=ConfigError, name=name)
    return decode(data, name, ConfigError).removesuffix("\n").removesuffix("\r")
