"""A check that a tokenizer.json ends, and a process with limits for one that may not.

Almost every tokenizer is a pipeline of steps whose time and output grow with the text alone. Steps
that may grow faster are found in its JSON: a replacement that makes a text longer, a regular
expression in which a repetition repeats, an unknown step. Such a tokenizer works too, in a process
that has limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from awq_edge.errors import ConfigError
from awq_edge.process import worker_process

_MEMORY_BYTES = 1 << 30
# Characters of the longest text that a character may become, over all steps.
_MOST_GROWTH = 8
_LONGEST_PREFIX = 64
_MOST_STEPS = 64
_MOST_REPETITIONS = 4  # of one alternative of a regular expression: time is a power of it
_COUNT = re.compile(r"\{(\d*)(,(\d*))?\}")  # {3}, {1,3}, {2,}
_MOST_FIXED, _MOST_COUNTED = 16, 1000
_PLAIN = frozenset(
    "NFC NFD NFKC NFKD Lowercase Strip StripAccents Nmt BertNormalizer ByteLevel Precompiled "
    "Whitespace WhitespaceSplit Metaspace Digits Punctuation BertPreTokenizer UnicodeScripts "
    "CharDelimiterSplit FixedLength BertProcessing RobertaProcessing WordPiece BPEDecoder "
    "ByteFallback Fuse CTC".split()
)
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class GuardedTokenizer:
    """Encodes and decodes in a process that is ended when it takes too much."""

    def __init__(self, tokenizer: str) -> None:
        """tokenizer: the text of a tokenizer.json."""
        self._pool = worker_process.WorkerPool(
            lambda: {
                "tokenizer": tokenizer,
                "memory_bytes": _MEMORY_BYTES,
                "cpu_seconds": worker_process.CPU_SECONDS,
            }
        )

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text. Raises ConfigError where the process is ended or fails."""
        ids: list[int] = self._ask({"encode": text, "special": add_special_tokens})["ids"]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids. Raises ConfigError where the process is ended or fails."""
        return str(self._ask({"decode": list(ids), "special": not skip_special_tokens})["text"])

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._pool.ask(request)
        if "error" in answer:
            raise ConfigError(
                f"the tokenizer was ended: {' '.join(str(answer['message']).split())[:300]}; its "
                "tokenizer.json has steps that grow beyond the text: use another model"
            )
        return answer


def is_plain(backend: Tokenizer) -> bool:
    """True if time and output of a tokenizer grow with the text alone."""
    growth = {"normalizer": 1.0, "decoder": 1.0}
    count = 0
    for part in _PARTS:
        value = getattr(backend, part)
        for step in _steps(None if value is None else json.loads(value.__getstate__())):
            count += 1
            factor = _growth(step)
            if factor is None or count > _MOST_STEPS:
                return False
            if part in growth:
                growth[part] *= factor
    return all(factor <= _MOST_GROWTH for factor in growth.values())


def _steps(part: object) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, sequences in sequences too."""
    if not isinstance(part, dict):
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        inner = part.get(key)
        for step in inner if isinstance(inner, list) else ():
            yield from _steps(step)


def _growth(step: Mapping[str, Any]) -> float | None:
    """The factor by which a step makes a text longer; None where it, or the step's time, is
    unbounded."""
    kind = step.get("type")
    if kind in _PLAIN:
        return 1.0
    if kind == "TemplateProcessing":
        return 1.0 if _is_short_template(step) else None
    if kind == "Prepend":
        return 1.0 if len(str(step.get("prepend", ""))) <= _LONGEST_PREFIX else None
    pattern = step.get("pattern")
    if kind not in ("Split", "Replace") or not isinstance(pattern, dict):
        return None
    literal, expression = pattern.get("String"), pattern.get("Regex")
    if isinstance(expression, str) and not _is_plain_expression(expression):
        return None
    if kind == "Split":
        return 1.0
    content = len(str(step.get("content", "")))
    # An expression may match a single character, or between two.
    least = len(literal) if isinstance(literal, str) else 1
    return None if least == 0 else max(1.0, content / least)


def _is_short_template(step: Mapping[str, Any]) -> bool:
    """True if the text itself stands in the template once."""
    single = step.get("single")
    pieces = single if isinstance(single, list) else []
    texts = sum(1 for piece in pieces if isinstance(piece, dict) and "Sequence" in piece)
    return len(pieces) <= _MOST_STEPS and texts <= 1


def _is_plain_expression(expression: str) -> bool:
    """True if no repetition repeats what has several ways to match, and no alternative has many.

    (a+)+ or (a|a)* takes time that doubles with each character; a back reference may too.
    """
    many_ways = [False]  # by open group: whether it holds a repetition, an option, alternatives
    repetitions = place = 0
    closed = False  # whether a group of many ways was closed just before
    while place < len(expression):
        char, rest = expression[place], expression[place:]
        step, was_closed, closed = 1, closed, False
        if char == "\\":
            if rest[1:2].isdigit() or rest[1:2] in ("k", "g"):
                return False
            step = 2
        elif char == "[":
            step = _class_length(rest)
        elif char == "(":
            many_ways.append(False)
            step = 2 if rest.startswith("(?") else 1
        elif char == ")":
            closed = len(many_ways) > 1 and many_ways.pop()
        elif char == "|":
            repetitions = repetitions if len(many_ways) > 1 else 0
            many_ways[-1] = True
        elif char == "?":
            many_ways[-1] = True
        elif char in "*+" or _COUNT.match(rest):
            count = _COUNT.match(rest)
            step = len(count[0]) if count else 1
            fixed = count is not None and count[2] is None and int(count[1] or 0) <= _MOST_FIXED
            if was_closed or (count is not None and _too_many(count)):
                return False
            if not fixed:
                many_ways[-1] = True
                repetitions += 1
            if repetitions > _MOST_REPETITIONS:
                return False
            # "+" and "?" behind it make it possessive or lazy.
            step += expression[place + step : place + step + 1] in ("+", "?")
        if closed:  # what holds such a group has as many ways
            many_ways[-1] = True
        place += step
    return True


def _too_many(count: re.Match[str]) -> bool:
    return any(int(number) > _MOST_COUNTED for number in (count[1], count[3]) if number)


def _class_length(text: str) -> int:
    """Characters of the class that a text begins with; classes may hold others."""
    depth = place = 0
    while place < len(text):
        if text[place] == "\\":
            place += 1
        elif text[place] == "[":
            depth += 1
        elif text[place] == "]":
            depth -= 1
        place += 1
        if depth == 0:
            break
    return place
