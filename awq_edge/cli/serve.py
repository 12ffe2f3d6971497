"""`awq-edge serve BUNDLE`: an OpenAI-compatible server of one model."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from awq_edge.cli.generated import SamplingOptions
from awq_edge.cli.options import (
    BundleArgument,
    ChatTemplateOption,
    ContextOption,
    MaxNewTokensOption,
    TemplateVariablesOption,
    ThreadsOption,
    template_variables,
)
from awq_edge.terminal_text import one_line


def serve(
    bundle: BundleArgument,
    sampling: SamplingOptions,
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
    max_new_tokens: MaxNewTokensOption = None,
    max_body_bytes: Annotated[int, typer.Option(help="Bytes of a request.")] = 1_000_000,
    shutdown_timeout: Annotated[
        float, typer.Option(help="Seconds that accepted requests have when the server is ended.")
    ] = 30.0,
    model_name: Annotated[
        str | None, typer.Option(help="What clients call it.  [default: as exported]")
    ] = None,
    chat_template: ChatTemplateOption = None,
    chat_template_kwargs: TemplateVariablesOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Serve a bundle over HTTP, as OpenAI's API: completions and chat completions."""
    from awq_edge.artifacts.sampling_keys import check_sampling
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
    keys = check_sampling(sampling)
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
