"""`awq-edge chat BUNDLE`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.chat_input import is_terminal
from awq_edge.cli.generated import SamplingOptions
from awq_edge.cli.options import (
    BundleArgument,
    ChatTemplateOption,
    ContextOption,
    MaxNewTokensOption,
    SeedOption,
    StopOption,
    TemplateVariablesOption,
    ThreadsOption,
    check_answer_options,
    template_variables,
)
from awq_edge.process.interruption import Terminated
from awq_edge.terminal_text import one_line, printable

if TYPE_CHECKING:
    from awq_edge.cli.chat_commands import ChatCommands
    from awq_edge.cli.interrupt import Interrupt
    from awq_edge.runtime.conversation import Conversation, Turn

_ENDS = {"context": ", the context is full", "cancelled": ", stopped", "length": ", at its limit"}


def chat(
    bundle: BundleArgument,
    sampling: SamplingOptions,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: MaxNewTokensOption = None,
    seed: SeedOption = None,
    chat_template: ChatTemplateOption = None,
    chat_template_kwargs: TemplateVariablesOption = None,
    stop: StopOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Chat with a bundle. Ctrl-C stops the answer, Ctrl-D leaves, /help shows the commands and how
    a message of several lines is written. Each line of a pipe is one message."""
    from awq_edge.artifacts.sampling_keys import check_sampling
    from awq_edge.cli.chat_commands import HINT, ChatCommands
    from awq_edge.cli.interrupt import Interrupt
    from awq_edge.cli.output import open_console
    from awq_edge.cli.progress import build_progress
    from awq_edge.runtime.conversation import Conversation
    from awq_edge.runtime.model import load
    from awq_edge.runtime.sampling import Sampling

    keys = check_sampling(sampling)
    variables = template_variables(chat_template_kwargs)
    check_answer_options(max_new_tokens, seed, stop)
    with (
        build_progress(open_console(stderr=True)) as building,
        load(
            bundle,
            context=context,
            threads=threads,
            chat_template=chat_template,
            observer=building,
        ) as model,
    ):
        conversation = Conversation(
            model,
            system=system,
            sampling=Sampling.of(keys.over(model.sampling), seed),
            max_new_tokens=max_new_tokens,
            variables=variables,
            stop=tuple(stop or ()),
        )
        _note(f"{model.manifest.model_name}, context {model.session.context}. {HINT}")
        if model.chat_template is None:
            _note("this model has no chat template: it continues the text that you type")
        interrupt = Interrupt()
        commands = ChatCommands(conversation, model, interrupt, _note, _warn, _tell)
        _converse(conversation, commands, interrupt)


def _converse(conversation: Conversation, commands: ChatCommands, interrupt: Interrupt) -> None:
    from awq_edge.cli.chat_history import History, history_file
    from awq_edge.cli.chat_input import MessageReader
    from awq_edge.errors import ConfigError, ResourceError

    reader = MessageReader(_note, History(history_file()), commands.completions)
    while True:
        try:
            message, commands.again = commands.again or reader.read(), None
            if message is None:
                return
            if commands.is_command(message):
                if not commands.run(message):
                    return
            elif message.strip():
                commands.last = _answer(conversation, message, interrupt, commands.quiet)
        except (ConfigError, ResourceError) as error:
            # A script must not go on as if nothing were; a person tries again.
            if not is_terminal():
                raise
            _note(f"error: {one_line(str(error))}")
        except Terminated:
            raise
        except KeyboardInterrupt:  # twice, or where nothing could be stopped politely
            if not is_terminal():
                raise
            _note("\nstopped")


def _answer(conversation: Conversation, text: str, interrupt: Interrupt, quiet: bool) -> Turn:
    """Ask, and show the answer as it comes. Raises ConfigError and ResourceError."""
    from awq_edge.cli.output import AnswerWriter, JsonTarget
    from awq_edge.cli.thought_writer import ThoughtWriter

    answer = AnswerWriter(JsonTarget(None).text_stream)
    thoughts = ThoughtWriter(shown=is_terminal())
    with interrupt:
        turn = conversation.ask(text, cancelled=interrupt.requested)
        try:
            for piece in turn.pieces():
                if piece.thought:
                    thoughts.write(piece.text)
                else:
                    thoughts.end()
                    answer.write(piece.text)
        finally:
            thoughts.end()
            answer.write("\n")
    generation = turn.result
    if turn.dropped and (generation.ids or generation.finish_reason != "cancelled"):
        _warn(
            f"the context is full: the oldest {turn.dropped} turn(s) of the conversation are "
            "dropped (/save still writes them)"
        )
    if interrupt.terminated:
        raise Terminated
    if generation.finish_reason == "cancelled" and not is_terminal():
        raise KeyboardInterrupt  # of a pipe, Ctrl-C ends the whole
    if quiet:
        return turn
    rate = generation.timings.decode_tokens_per_second
    speed = f", {rate.median:.1f} tokens/s" if rate else ""
    _note(f"{len(generation.ids)} tokens{speed}{_ENDS.get(generation.finish_reason, '')}")
    return turn


def _note(text: str) -> None:
    """Print a note on standard error; none into a pipe's log."""
    if is_terminal():
        _tell(text)


def _tell(text: str) -> None:
    """Print the output of a command, which is no answer of the model."""
    print(printable(text), file=sys.stderr, flush=True)


def _warn(text: str) -> None:
    """Print a warning that the reader of a pipe must see too."""
    _tell(text if is_terminal() else f"warning: {text}")
