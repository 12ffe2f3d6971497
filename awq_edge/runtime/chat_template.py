"""Chat templates: Jinja programs that come with a model, run in a sandbox.

The environment is the one that transformers gives templates: trim_blocks and lstrip_blocks, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, and the
`generation` block, whose body is kept as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from awq_edge.errors import ConfigError, ModelError
from awq_edge.input_files import read_json

if TYPE_CHECKING:
    import jinja2
    from jinja2.nodes import Node
    from jinja2.parser import Parser

# {"role": "user" | "assistant" | "system", "content": text}
Message = Mapping[str, str]


class ChatTemplate:
    """One compiled template. Templates are untrusted input: they see plain data only."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """special_tokens: texts by name ("bos_token"). Raises ModelError on a syntax error."""
        import jinja2

        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template has a syntax error in line {error.lineno}: {error.message}; "
                "use --raw to send the prompt as it is"
            ) from None
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text that the model was trained to see for this conversation.

        Raises ConfigError with the template's own words where it refuses (roles must alternate).
        """
        import jinja2

        try:
            return self._template.render(
                **self._special_tokens,
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"the chat template refused the messages: {error}") from None


def load_chat_template(directory: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The template of a bundle or model directory, or None where the model has none.

    In the order of transformers: chat_template.jinja, chat_template.json, tokenizer_config.json
    (where several are named, "default").
    """
    file = directory / "chat_template.jinja"
    if file.exists():
        return ChatTemplate(file.read_text(encoding="utf-8"), special_tokens)
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        source = read_json(path).get("chat_template") if path.exists() else None
        if isinstance(source, list):
            named = {str(entry.get("name")): entry.get("template") for entry in source}
            source = named.get("default")
        if isinstance(source, str):
            return ChatTemplate(source, special_tokens)
    return None


def _environment() -> jinja2.Environment:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """{% generation %}...{% endgeneration %}: marks an answer for training; kept here."""

        tags = {"generation"}  # noqa: RUF012 - the attribute jinja2 declares

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
