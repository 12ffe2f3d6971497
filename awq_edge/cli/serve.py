"""`awq-edge serve BUNDLE`: an OpenAI-compatible server of one model."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from awq_edge.cli.sampling_options import (
    MinPOption,
    RepetitionPenaltyOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    sampling_keys,
)
from awq_edge.cli.template_options import (
    ChatTemplateOption,
    TemplateVariablesOption,
    template_variables,
)
from awq_edge.terminal_text import one_line


def serve(
    bundle: Annotated[str, typer.Argument(help="Directory made by `awq-edge export`.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="AWQ_EDGE_API_KEY",
            show_default=False,
            help="What clients must send as a bearer token. In the variable it is not seen in ps.",
        ),
    ] = None,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; then 429.")] = 64,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one answer.  [default: the context is the limit]")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Bytes of a request.")] = 1_000_000,
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds that accepted requests have when the server is ended.")
    ] = 30.0,
    model_name: Annotated[
        str | None, typer.Option(help="What clients call it.  [default: as exported]")
    ] = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    chat_template: ChatTemplateOption = None,
    chat_template_kwargs: TemplateVariablesOption = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of the KV cache.  [default: as exported]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads.  [default: physical cores]")
    ] = None,
) -> None:
    """Serve a bundle over HTTP, as OpenAI's API: completions and chat completions."""
    from awq_edge.cli.output import open_console
    from awq_edge.cli.progress import build_progress
    from awq_edge.errors import ConfigError
    from awq_edge.runtime.model import load
    from awq_edge.serve.limits import Limits
    from awq_edge.serve.server import address, bind, is_loopback
    from awq_edge.serve.server import serve as run_server
    from awq_edge.serve.service import Service

    limits = Limits(
        max_queue=max_queue,
        max_new_tokens=max_new_tokens,
        max_body=max_body_bytes,
        shutdown_seconds=shutdown_timeout,
    )
    if api_key is None and os.environ.get("AWQ_EDGE_API_KEY") == "":  # which is "not set" to click
        raise ConfigError("AWQ_EDGE_API_KEY is empty; give it a key, or unset it")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
        raise ConfigError(
            "--api-key (or AWQ_EDGE_API_KEY) is empty or not ASCII; give a key, or leave it out"
        )
    if api_key is not None and api_key != api_key.strip():
        raise ConfigError("--api-key (or AWQ_EDGE_API_KEY) has blanks around it; remove them")
    keys = sampling_keys(temperature, top_k, top_p, min_p, repetition_penalty)
    variables = template_variables(chat_template_kwargs)
    with bind(host, port) as sock:
        if api_key is None and not is_loopback(sock):
            _say(
                f"warning: {address(sock)} can be reached from other machines and no --api-key is "
                "set: whoever reaches it can use the model"
            )
        with build_progress(open_console(stderr=True)) as building:
            model = load(
                bundle,
                context=context,
                threads=threads,
                chat_template=chat_template,
                observer=building,
            )
        service = Service(
            model,
            limits=limits,
            api_key=api_key,
            model_name=model_name,
            local=is_loopback(sock),
            sampling=keys,
            variables=variables,
        )
        if run_server(service, sock, _say):
            model.close()


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
        print(f"awq-edge serve: {one_line(text)}", file=sys.stderr, flush=True)
