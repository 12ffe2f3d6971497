"""Chat templates rendered by processes that are ended when a template takes too much.

A process is started with the first template and kept: rendering then costs less than a millisecond.
A process that had to be ended is replaced at the next request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awq_edge.errors import ConfigError, ModelError
from awq_edge.process import worker_process

# One rendering's limits beside the time. A conversation of a million characters takes milliseconds.
MEMORY_BYTES = 512 << 20
CHARACTERS = 4_000_000


class TemplateLimitError(ConfigError):
    """A chat template was ended as it takes too much."""


def render(source: str, variables: Mapping[str, Any] | None) -> str:
    """The text of a template, by a process of its own; None compiles it alone.

    Raises ModelError for a template that is no Jinja, ConfigError where it refuses the messages
    or exceeds a limit.
    """
    answer = _pool.ask({"source": source, "variables": variables})
    if "text" in answer:
        return str(answer["text"])
    message = " ".join(str(answer["message"]).split())[:500]
    if answer["error"] == "syntax":
        where = f" in line {answer['line']}" if answer["line"] else ""
        raise ModelError(
            f"the chat template is broken: a syntax error{where}: {message}; correct it, give "
            "another by --chat-template FILE, or send the prompt as it is (--raw)"
        )
    if answer["error"] == "limit":
        raise TemplateLimitError(
            f"the chat template was ended: {message}; give another by --chat-template FILE, or "
            "send the prompt as it is (--raw)"
        )
    raise ConfigError(f"the chat template refused the messages: {message}")


def warm_up() -> None:
    """Start a process for later, without waiting for it."""
    _pool.warm_up()


def new_pool() -> worker_process.WorkerPool:
    """Processes that render templates, each started when it is needed."""
    return worker_process.WorkerPool(
        lambda: {
            "memory_bytes": MEMORY_BYTES,
            "cpu_seconds": worker_process.CPU_SECONDS,
            "characters": CHARACTERS,
        },
    )


_pool = new_pool()
