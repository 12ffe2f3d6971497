"""The program of a process that executes strangers' files: chat templates and tokenizers.

A template may loop for ever or double a string until memory ends, when it is compiled as when it is
rendered; so may a tokenizer's regular expressions and replacements, which hold Python's lock
meanwhile. A process can be ended, a thread cannot. Requests and answers are JSON, one a line, on
standard input and output. Nothing but the standard library and jinja2, or tokenizers, is imported:
it starts in a tenth of a second.

The environment is the one that transformers gives templates: trim_blocks and lstrip_blocks, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, and the
`generation` block, whose body is kept as it is.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2
    from jinja2.nodes import Node
    from jinja2.parser import Parser

_KEPT_TEMPLATES = 8  # compiled, of the latest requests


def main() -> None:
    """Serve until standard input ends. The first line has the limits and the paths of packages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    setup = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = setup["path"]
    tokenizer = setup.get("tokenizer")
    answer = _renderer(setup["characters"]) if tokenizer is None else _tokenizing(tokenizer)
    _limit_memory(setup["memory_bytes"])
    _answer({"ready": True})
    for line in sys.stdin.buffer:
        _limit_time(setup["cpu_seconds"])
        _answer(answer(json.loads(line)))
        _limit_time(0)


def _renderer(characters: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that renders templates. characters: the limit of one rendering."""
    environment = _environment()
    compiled: dict[str, jinja2.Template] = {}
    return lambda request: _rendered(environment, compiled, request, characters)


def _tokenizing(tokenizer: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that encodes and decodes by the text of a tokenizer.json: {"ids"} or {"text"}."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        special = request["special"]
        try:
            if "encode" in request:
                return {"ids": backend.encode(request["encode"], add_special_tokens=special).ids}
            return {"text": backend.decode(request["decode"], skip_special_tokens=not special)}
        except MemoryError:
            return {"error": "limit", "message": "it takes too much memory"}
        except BaseException as error:  # what panics in Rust is no Exception
            return {"error": "refused", "message": f"{error}"}

    return answer


def _rendered(
    environment: jinja2.Environment,
    compiled: dict[str, jinja2.Template],
    request: dict[str, Any],
    characters: int,
) -> dict[str, Any]:
    """{"text"}, or {"error": a kind, "message", for a syntax error "line"}."""
    import jinja2

    source = request["source"]
    try:
        if source not in compiled:
            while len(compiled) >= _KEPT_TEMPLATES:
                compiled.pop(next(iter(compiled)))
            compiled[source] = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        return {"error": "syntax", "message": str(error.message), "line": error.lineno}
    except (MemoryError, RecursionError) as error:
        return {"error": "limit", "message": _limit_of(error)}
    except Exception as error:
        return {"error": "syntax", "message": f"{type(error).__name__}: {error}", "line": 0}
    if request["variables"] is None:  # it was to be compiled alone
        return {"text": ""}
    try:
        pieces, length = [], 0
        for piece in compiled[source].generate(request["variables"]):
            length += len(piece)
            if length > characters:
                return {"error": "limit", "message": f"it writes more than {characters} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except (MemoryError, RecursionError) as error:
        return {"error": "limit", "message": _limit_of(error)}
    except Exception as error:
        return {"error": "refused", "message": str(error) or type(error).__name__}


def _limit_of(error: MemoryError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it takes too much memory"


def _answer(body: dict[str, Any]) -> None:
    text = json.dumps(body, ensure_ascii=False)
    sys.stdout.buffer.write(text.encode("utf-8", "surrogatepass") + b"\n")
    sys.stdout.buffer.flush()


def _limit_memory(count: int) -> None:
    """Limit this process's memory. count: bytes beyond those that it has now."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + count, now + count))
    except (ImportError, OSError, ValueError):
        pass  # not Linux: time and output are limited alone


def _limit_time(seconds: float) -> None:
    """End this process, by a signal that nothing handles, after seconds of computing."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _environment() -> jinja2.Environment:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """{% generation %}...{% endgeneration %}: marks an answer for training; kept here."""

        tags = {"generation"}

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


if __name__ == "__main__":
    main()
