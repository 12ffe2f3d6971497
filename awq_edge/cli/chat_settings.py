"""The settings of a chat that `/set` changes, by the names of the flags and of other programs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from awq_edge.errors import ConfigError

if TYPE_CHECKING:
    from awq_edge.runtime.conversation import Conversation

# Other programs' names of the settings.
_OTHER_NAMES = {
    "repeat_penalty": "repetition_penalty",
    "num_predict": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "temp": "temperature",
}
_OFF = ("off", "none")


def _positive(text: str) -> int | None:
    if text in _OFF or text == "-1":
        return None
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _seed(text: str) -> int | None:
    return None if text in (*_OFF, "-1", "random") else int(text)


def _stop_texts(text: str) -> tuple[str, ...]:
    if text in _OFF:
        return ()
    return tuple(word.encode().decode("unicode_escape") if "\\" in word else word
                 for word in shlex.split(text))  # fmt: skip


_PARSERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "seed": _seed,
    "max_new_tokens": _positive,
    "stop": _stop_texts,
    "system": lambda text: None if text in _OFF else text.strip('"'),
}
NAMES = (*_PARSERS, "quiet", "verbose")


def parse_setting(argument: str) -> tuple[str, Any]:
    """The name and value of `/set ARGUMENT`; the word "parameter" before them may be left out.

    The value of "quiet" and "verbose" is None. Raises ConfigError that lists the settings.
    """
    name, _, text = argument.partition(" ")
    if name == "parameter":
        name, _, text = text.strip().partition(" ")
    name, text = name.replace("-", "_"), text.strip()
    name = _OTHER_NAMES.get(name, name)
    if name in ("quiet", "verbose"):
        return name, None
    if name not in _PARSERS:
        raise ConfigError(f"/set {name}: there are {', '.join(NAMES)}")
    if not text:
        raise ConfigError(f"/set {name} needs a value: /set {name} {_example(name)}")
    try:
        return name, _PARSERS[name](text)
    except ValueError:
        raise ConfigError(f"/set {name} {text}: give a value such as {_example(name)}") from None


def settings_rows(conversation: Conversation) -> list[tuple[str, str]]:
    """Names and present values."""
    sampling = conversation.sampling
    values: dict[str, Any] = {
        name: getattr(sampling, name) for name in _PARSERS if hasattr(sampling, name)
    }
    values["max_new_tokens"] = conversation.max_new_tokens
    values["stop"] = ", ".join(map(repr, conversation.stop)) or None
    values["system"] = conversation.system
    unset = {"seed": "random"}
    return [
        (name, unset.get(name, "off") if value is None else str(value))
        for name, value in values.items()
    ]


def _example(name: str) -> str:
    return {
        "temperature": "0.7", "top_k": "40", "top_p": "0.9", "min_p": "0.05",
        "repetition_penalty": "1.1", "seed": "1", "max_new_tokens": "200", "stop": '"User:"',
    }.get(name, "Answer in one sentence.")  # fmt: skip
