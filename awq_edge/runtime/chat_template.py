"""Chat templates: Jinja programs that come with a model, from messages to the model's text.

A template is rendered by a process of its own (`template_process`), and compiled when it is first
used: a broken one disturbs no other work. The traits of a template are found by rendering a small
conversation: whether a message's content is a text or parts, whether a system message has a place,
and the text that ends an answer.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge.artifacts.input_files import read_json, read_text
from awq_edge.errors import ConfigError, ModelError
from awq_edge.runtime import template_process

# {"role": "user" | "assistant" | "system", "content": text, a list of parts, or None}, and what
# else the template may know: "reasoning_content" of an assistant's message.
Message = Mapping[str, Any]

# Words that no template has, and none changes.
_SYSTEM, _USER, _ANSWER, _NEXT = "systemzqwords", "firstzqquestion", "itszqanswer", "nextzqquestion"
# As transformers marks the end of an answer that is to be continued; a template that strips its
# messages takes the blank.
_CONTINUE = "CONTINUEzqHERE "
_HALF_MARKER = re.compile(r"[<\[◁][^<>\[\]◁▷\s]{0,40}\Z")
# What people write into a message to switch thoughts on or off: for the template, or the model.
SWITCHES = ("/think", "/no_think", "/nothink")
_LARGEST_TEMPLATE = 4_000_000  # bytes; the longest in use have 100,000
_RESERVED = ("messages", "add_generation_prompt", "continue_final_message")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Traits:
    """The traits of a template."""

    parts: bool  # contents must be lists of parts
    system: bool  # system messages have a place


class ChatTemplate:
    """One template. Templates are untrusted input: they see plain data only."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], *, unread: str | None = None
    ) -> None:
        """special_tokens: texts by name ("bos_token").
        unread: the reason why there is no source.
        """
        self.source = source
        self._unread = unread
        self._special_tokens = dict(special_tokens)
        self._said = False  # what is said once in the log
        self._failed: ConfigError | ModelError | None = None

    def check(self) -> None:
        """Raise ModelError where the template is no Jinja, ConfigError where it cannot be
        compiled."""
        if self._unread is not None:
            raise ModelError(self._unread)
        template_process.render(self.source, None)

    def check_words(self) -> None:
        """Raise what `render` raises for every message: the template is broken, never ends or omits
        messages."""
        self._traits  # noqa: B018

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that the model was trained to see for this conversation.

        add_generation_prompt: begin the answer's turn.
        continue_final_message: end inside the last message instead, which is an answer's beginning.
        variables: further variables of the template (enable_thinking, reasoning_effort).
        Raises ConfigError with the template's own words where it refuses (roles must alternate),
        and where it omits a user's words; ModelError where it is broken.
        """
        made = [_as_text(message) for message in messages]
        if continue_final_message:
            if not made or made[-1].get("role") != "assistant":
                raise ConfigError(
                    "continue_final_message needs a last message of role assistant; there is "
                    f"{made[-1].get('role') if made else 'none'}"
                )
            made[-1]["content"] = f"{made[-1]['content']}{_CONTINUE}"
        traits = self._traits
        if not traits.system:
            made = self._without_system(made)
        asked = [m["content"] for m in made if m.get("role") == "user"]
        if traits.parts:
            made = [_as_parts(message) for message in made]
        text = self._render(made, add_generation_prompt and not continue_final_message, variables)
        for number, words in enumerate(asked, start=1):
            if isinstance(words, str) and not _reaches(words, text):
                raise ConfigError(
                    f"the chat template leaves out words of the user's message {number}; give "
                    "another by --chat-template FILE, or send the prompt as it is (--raw)"
                )
        return _cut(text) if continue_final_message else text

    def beginning(self, text: str, messages: Sequence[Message], **options: Any) -> str:
        """The beginning of the answer's turn in a rendered text. options: of the rendering."""
        last = str(_as_text(messages[-1])["content"]).strip() if messages else ""
        continued = bool(options.get("continue_final_message"))
        shorter = {**options, "continue_final_message": False, "add_generation_prompt": False}
        try:
            before = self.render(messages[:-1] if continued else messages, **shorter)
        except ConfigError:  # some want a question last, and one at least
            before = ""
        place = _common(text, before)
        if cut := _HALF_MARKER.search(text, 0, place):
            place = cut.start()  # </s> where nothing is begun, and <think> begin alike
        begun = text[place:] if before else ""
        if continued:
            return begun or last
        # A template that begins every turn alike, asked or not.
        return begun or text[text.rfind(last) + len(last) :]

    @functools.cached_property
    def turn_end(self) -> str:
        """The text between an answer and the next question; "" where it is not known."""
        _, answer, behind = self._conversation.rpartition(_ANSWER)
        end, question, _ = behind.partition(_NEXT)
        return end if answer and question else ""

    @functools.cached_property
    def frames(self) -> tuple[str, str, str] | None:
        """The texts before the first question, between it and its answer, and between that and the
        next question; None where they are not known. Raises as `check_words`."""
        before, question, rest = self._conversation.partition(_USER)
        between, answer, behind = rest.partition(_ANSWER)
        end, following, _ = behind.partition(_NEXT)
        return (before, between, end) if question and answer and following else None

    @functools.cached_property
    def _conversation(self) -> str:
        """Two questions and the answer between them, rendered; "" where that is refused."""
        talk = [("user", _USER), ("assistant", _ANSWER), ("user", _NEXT)]
        return self._tried(talk, parts=self._traits.parts)

    @functools.cached_property
    def _traits(self) -> _Traits:
        """The template's traits. Raises ModelError where it is broken, ConfigError where it omits
        words."""
        if self._failed is not None:  # which may have taken its time to find out
            raise self._failed
        try:
            return self._found_traits()
        except (ConfigError, ModelError) as error:
            self._failed = error
            raise

    def _found_traits(self) -> _Traits:
        self.check()
        questions = [("user", _USER), ("assistant", _ANSWER), ("user", _NEXT)]
        parts = refused = False
        for parts in (False, True):
            text = self._tried(questions, parts=parts)
            if _USER in text or _NEXT in text:
                break
            if not text:  # some take one question alone
                text = self._tried(questions[:1], parts=parts)
                if _USER in text:
                    break
            refused |= not text
        else:
            if not refused:
                raise ConfigError(
                    "the chat template leaves out what the user says, as text and as parts; give "
                    "another by --chat-template FILE, or send the prompt as it is (--raw)"
                )
            parts = False  # its own words are in the error of what is asked for
        system = self._tried([("system", _SYSTEM), ("user", _USER)], parts=parts)
        return _Traits(parts, _SYSTEM in system)

    def _tried(self, talk: Sequence[tuple[str, str]], *, parts: bool) -> str:
        """A conversation rendered; "" where the template refuses it."""
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in talk]
        try:
            return self._render([_as_parts(m) for m in messages] if parts else messages, False, {})
        except template_process.TemplateLimitError:
            raise
        except ConfigError:
            return ""

    def _without_system(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with the system's put before the first user's words."""
        system = [m for m in messages if m.get("role") == "system"]
        rest = [m for m in messages if m.get("role") != "system"]
        texts = [m["content"] for m in system if isinstance(m["content"], str)]
        first = next((m for m in rest if m.get("role") == "user"), None)
        if first is None or not isinstance(first["content"], str) or len(texts) < len(system):
            return messages
        if texts:
            self._say_once()
            first["content"] = "\n\n".join([*filter(None, texts), first["content"]])
        return rest

    def _say_once(self) -> None:
        if self._said:
            return
        self._said = True
        _log.warning(
            "the chat template has no place for a system message: it goes before the first user's "
            "words"
        )

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None,
    ) -> str:
        if reserved := [name for name in variables or () if name in _RESERVED]:
            raise ConfigError(
                f"{reserved[0]} is no variable of a chat template that can be set; leave it out"
            )
        try:
            return template_process.render(
                self.source,
                {
                    **self._special_tokens,
                    "tools": None,
                    "documents": None,
                    **(variables or {}),
                    "messages": list(messages),
                    "add_generation_prompt": add_generation_prompt,
                },
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"the messages or variables of the chat template are no JSON: {error}"
            ) from None


def load_chat_template(directory: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The template of a bundle or model directory, or None where the model has none.

    In the order of transformers: chat_template.jinja, chat_template.json, tokenizer_config.json
    (where several are named, "default").
    """
    file = directory / "chat_template.jinja"
    if file.exists():
        try:
            return read_chat_template(file, special_tokens)
        except ModelError as error:  # for whoever needs it
            return ChatTemplate("", special_tokens, unread=str(error))
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        source = read_json(path).get("chat_template") if path.exists() else None
        if isinstance(source, list):
            named = {
                str(entry.get("name")): entry.get("template")
                for entry in source
                if isinstance(entry, dict)
            }
            source = named.get("default")
        if isinstance(source, str):
            return ChatTemplate(source, special_tokens)
    return None


def read_chat_template(
    file: Path, special_tokens: Mapping[str, str], *, name: str | None = None
) -> ChatTemplate:
    """The template of one file. name: of the file in messages, None for its path. Raises ModelError
    for one that cannot be read."""
    return ChatTemplate(read_text(file, limit=_LARGEST_TEMPLATE, name=name), special_tokens)


def _as_text(message: Message) -> dict[str, Any]:
    """A message whose content is a text where it is made of text alone."""
    content = message.get("content")
    if content is None:
        content = ""
    elif isinstance(content, list) and all(_is_text(part) for part in content):
        content = "\n".join(part["text"] for part in content)
    return {**message, "content": content}


def _is_text(part: object) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _as_parts(message: Message) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {**message, "content": content}


def _reaches(words: str, text: str) -> bool:
    """True if a prompt has a user's words: as they are, written as JSON, or most of them."""
    if words.strip() in text or json.dumps(words.strip(), ensure_ascii=False)[1:-1] in text:
        return True
    # A template may change blanks, and take a switch out.
    user_words = [word for word in words.split() if word not in SWITCHES]
    present = sum(word in text for word in user_words)
    return not user_words or (
        2 * present > len(user_words) and sum(map(len, user_words)) < 2 * len(text)
    )


def _common(first: str, second: str) -> int:
    """The number of characters that both texts begin with."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


def _cut(text: str) -> str:
    """A text up to where its last answer is to be continued."""
    mark = _CONTINUE.strip()
    place = text.rfind(mark)
    if place < 0:
        raise ConfigError(
            "the chat template does not repeat an answer's text, so that it cannot be continued; "
            "send a user's message last"
        )
    before = text[:place]
    return before if text.startswith(_CONTINUE, place) else before.rstrip()
