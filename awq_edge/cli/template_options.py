"""The flags of the chat template, the same in run, chat and serve."""

from __future__ import annotations

from typing import Annotated, Any

import typer

ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template", metavar="FILE", help="A Jinja file in place of the model's own template."
    ),
]
TemplateVariablesOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="What the template knows beside the messages: '{\"enable_thinking\": false}'.",
    ),
]


def template_variables(text: str | None) -> dict[str, Any] | None:
    """The object of --chat-template-kwargs. Raises ConfigError for what is none."""
    from awq_edge.artifacts.input_files import parse_json
    from awq_edge.errors import ConfigError

    return None if text is None else parse_json(text, "--chat-template-kwargs", ConfigError)
