"""Thoughts of a reasoning model, separated from its answer while the text comes.

    <think> 2 + 2 ... </think>   The answer is 4.
            └── thoughts ─┘      └─── answer ───┘

A model's markers are read from its chat template and its added tokens. Where the template opens the
thoughts itself, the text begins inside them. Markers count at the beginning of an answer alone: one
that the model writes later, or that a user wrote, is text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from awq_edge.runtime.session import Float32

# undecided: nothing but what may become a marker has come.
State = Literal["undecided", "thoughts", "answer"]

# The pair of DeepSeek, Qwen, SmolLM, Phi and most others comes first: a template that explains
# another pair to its model, as SmolLM3's does, has this one too.
_PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)
# Markers that some models put around the answer after their thoughts.
_WRAPPERS = (
    ("<response>", "</response>"),  # Granite 3.3
    ("<answer>", "</answer>"),  # Hunyuan
    ("<|begin_of_solution|>", "<|end_of_solution|>"),  # OpenThinker
)
# gpt-oss: <|start|>assistant<|channel|>analysis<|message|>...<|end|>
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_CHANNEL_TOKENS = ("<|start|>", _CHANNEL, _MESSAGE, "<|end|>", "<|return|>", "<|call|>")
_CHANNEL_TOKEN = re.compile("|".join(re.escape(token) for token in _CHANNEL_TOKENS))
_LONGEST_HEADER = 200  # characters of a role, a channel's name and its recipient


@dataclass(frozen=True)
class TextDelta:
    """A part of a model's text. thought: it belongs to the thoughts."""

    text: str
    thought: bool = False


@dataclass(frozen=True)
class ThoughtMarkers:
    """The markers around a model's thoughts."""

    opening: str
    closing: str
    channels: bool = False  # gpt-oss's form in place of a pair
    wrapper: tuple[str, str] | None = None  # markers that may surround the answer

    @property
    def texts(self) -> tuple[str, ...]:
        """All marker texts."""
        if self.channels:
            return _CHANNEL_TOKENS
        return (self.opening, self.closing, *(self.wrapper or ()))

    def splitter(self, beginning: str) -> ThoughtSplitter:
        """A splitter of the text after `beginning`, the beginning of the answer's turn in the
        prompt: the template's opening of the turn, and the text of an answer to be continued."""
        return _ChannelSplitter(beginning) if self.channels else _PairSplitter(self, beginning)


class ThoughtSplitter(Protocol):
    """Splits a text, in any pieces, into thoughts and answer, without markers."""

    @property
    def state(self) -> State: ...

    @property
    def ended(self) -> bool:
        """True if a marker came that ends the answer."""
        ...

    def push(self, text: str, *, special: bool = False) -> list[TextDelta]:
        """The deltas that are certain now.

        special: the text of a special token, which is never given out.
        """
        ...

    def flush(self) -> list[TextDelta]:
        """The deltas held back, when the text has ended."""
        ...


def find_markers(source: str, added_tokens: Collection[str]) -> ThoughtMarkers | None:
    """The markers of a model by its template's source, else by its added tokens; None: it has none.

    One marker of a pair in the template is enough: many open or cut the thoughts alone.
    """
    if _CHANNEL in source and _MESSAGE in source:
        return ThoughtMarkers(_CHANNEL, "", channels=True)
    for opening, closing in _PAIRS:
        if opening in source or closing in source:
            wrapper = next((pair for pair in _WRAPPERS if pair[0] in source), None)
            return ThoughtMarkers(opening, closing, wrapper=wrapper)
    for opening, closing in _PAIRS:
        if opening in added_tokens and closing in added_tokens:
            return ThoughtMarkers(opening, closing)
    return None


class HeldText:
    """Text that is held back; characters of special tokens are marked."""

    def __init__(self) -> None:
        self.text = ""
        self._special: list[bool] = []

    def append(self, text: str, special: bool) -> None:
        self.text += text
        self._special += [special] * len(text)

    def take(self, count: int) -> str:
        """Remove the first characters; returns those of ordinary tokens."""
        taken, special = self.text[:count], self._special[:count]
        self.text, self._special = self.text[count:], self._special[count:]
        return "".join(c for c, hidden in zip(taken, special, strict=True) if not hidden)

    def strip_left(self) -> None:
        self.take(len(self.text) - len(self.text.lstrip()))


class _PairSplitter:
    """Implements `ThoughtSplitter` for an opening and a closing marker."""

    def __init__(self, markers: ThoughtMarkers, beginning: str) -> None:
        self._markers = markers
        self._held = HeldText()
        self._fresh = True  # only blanks came since the last marker
        self._wrapped = False  # the answer has a wrapper
        self.ended = False
        opened, closed = beginning.rfind(markers.opening), beginning.rfind(markers.closing)
        self.state: State = "undecided"
        if opened > closed:
            self.state = "thoughts"
            self._fresh = not beginning[opened + len(markers.opening) :].strip()
        elif closed >= 0:
            self.state = "answer"
            self._fresh = not beginning[closed + len(markers.closing) :].strip()

    def push(self, text: str, *, special: bool = False) -> list[TextDelta]:
        pieces: list[TextDelta] = []
        if self.ended:
            return pieces
        self._held.append(text, special)
        if self.state == "undecided" and not self._opened():
            return pieces
        if self.state == "thoughts" and not self._closed(pieces):
            return pieces
        if self._fresh and not self._begun():
            return pieces
        shown = self._take_answer()
        return [*pieces, TextDelta(shown)] if shown else pieces

    def flush(self) -> list[TextDelta]:
        thought = self.state == "thoughts"
        text = self._held.take(len(self._held.text))
        text = text.rstrip() if thought or self._wrapped else text
        return [TextDelta(text, thought)] if text else []

    def _begun(self) -> bool:
        """True if the answer after the thoughts has begun; its wrapper is no part of it."""
        held, wrapper = self._held, self._markers.wrapper
        held.strip_left()
        if wrapper is not None and not self._wrapped:
            if held.text.startswith(wrapper[0]):
                held.take(len(wrapper[0]))
                held.strip_left()
                self._wrapped = True
            elif wrapper[0].startswith(held.text):
                return False
        self._fresh = not held.text
        return not self._fresh

    def _take_answer(self) -> str:
        """The held text that is certain not to belong to the end of the answer's wrapper; the text
        after that end is dropped."""
        text, wrapper = self._held.text, self._markers.wrapper
        if not self._wrapped or wrapper is None:
            return self._held.take(len(text))
        place = text.find(wrapper[1])
        self.ended = place >= 0
        end = place if self.ended else len(text) - overlap(text, wrapper[1])
        shown = self._held.take(len(text[:end].rstrip()))
        if self.ended:
            self._held.take(len(self._held.text))
        return shown

    def _opened(self) -> bool:
        """True if it is certain what the text begins with."""
        opening, begin = self._markers.opening, self._held.text.lstrip()
        if begin.startswith(opening):
            self._held.strip_left()
            self._held.take(len(opening))
            self.state = "thoughts"
        elif not opening.startswith(begin):
            self.state, self._fresh = "answer", False
        return self.state != "undecided"

    def _closed(self, pieces: list[TextDelta]) -> bool:
        """Give out the thoughts; True if they have ended."""
        held, opening, closing = self._held, self._markers.opening, self._markers.closing
        if self._fresh:
            held.strip_left()
            if held.text.startswith(opening):  # some models repeat what the template wrote
                held.take(len(opening))
                held.strip_left()
            elif opening.startswith(held.text):
                return False
            self._fresh = not held.text
        place = held.text.find(closing)
        # Blanks before the closing marker belong to it.
        end = len(held.text) - overlap(held.text, closing) if place < 0 else place
        if text := held.take(len(held.text[:end].rstrip())):
            pieces.append(TextDelta(text, thought=True))
        if place < 0:
            return False
        held.strip_left()
        held.take(len(closing))
        self.state, self._fresh = "answer", True
        return True


class _ChannelSplitter:
    """Implements `ThoughtSplitter` for gpt-oss: the channel `final` is the answer."""

    def __init__(self, beginning: str) -> None:
        self._held = HeldText()
        self.state: State = "undecided"
        self._header: str | None = ""  # None inside a message
        self.ended = False
        self.push(beginning)
        if self.state == "undecided":  # the header's role is in the prompt
            self._header = ""

    def push(self, text: str, *, special: bool = False) -> list[TextDelta]:
        held, pieces = self._held, list[TextDelta]()
        held.append(text, special)
        while match := _CHANNEL_TOKEN.search(held.text):
            self._text(held.take(match.start()), pieces)
            held.take(len(match[0]))
            self._marker(match[0])
        rest = len(held.text) - max(overlap(held.text, token) for token in _CHANNEL_TOKENS)
        self._text(held.take(rest), pieces)
        return pieces

    def flush(self) -> list[TextDelta]:
        pieces: list[TextDelta] = []
        self._text(self._held.take(len(self._held.text)), pieces)
        if self.state == "undecided" and self._header:
            pieces.append(TextDelta(self._header))
        return pieces

    def _marker(self, marker: str) -> None:
        if marker == _MESSAGE:
            words = (self._header or "final").split()
            self.state = "answer" if words[:1] == ["final"] else "thoughts"
            self._header = None
        elif marker in ("<|return|>", "<|call|>") or self.state == "answer":
            self.ended = True
        else:
            self._header = ""

    def _text(self, text: str, pieces: list[TextDelta]) -> None:
        if self.ended or not text:
            return
        if self._header is None:
            pieces.append(TextDelta(text, self.state == "thoughts"))
            return
        self._header += text
        if self.state == "undecided" and (
            "\n" in self._header or len(self._header) > _LONGEST_HEADER
        ):
            # A model that does not keep to the form: all of it is the answer.
            pieces.append(TextDelta(self._header))
            self.state, self._header = "answer", None


class AnswerConstraint:
    """A constraint that begins after the thoughts; implements `Constraint`.

    While thoughts may still come, their opening marker is allowed beside the tokens that the
    constraint allows. Thoughts are free, but do not end the generation.
    """

    def __init__(
        self,
        answer: _Constraint,
        splitter: ThoughtSplitter,
        opening: Sequence[int],
        stops: Collection[int],
    ) -> None:
        """opening: ids of the opening marker. stops: ids that end an answer."""
        self._answer = answer
        self._splitter = splitter
        self._opening = list(opening)
        self._stops = list(stops)
        self._opened = 0  # ids of the opening marker that have come
        self._answering = False

    def mask(self, logits: Float32) -> Float32:
        self._answering |= self._splitter.state == "answer"
        if self._answering:
            return self._answer.mask(logits)
        if self._splitter.state == "undecided" and self._opened < len(self._opening):
            token = self._opening[self._opened]
            if self._opened:
                masked: Float32 = np.full_like(logits, -np.inf)
            else:
                masked = self._answer.mask(logits)
            masked[token] = logits[token]
            return masked
        masked = logits.copy()
        masked[[token for token in self._stops if token < len(masked)]] = -np.inf
        return masked

    def accept(self, token_id: int) -> bool:
        if not self._answering and self._splitter.state == "undecided":
            expected = self._opening[self._opened : self._opened + 1]
            if self._opened >= len(self._opening) or [token_id] == expected:
                self._opened += 1
                return False
            self._answering = True
        return self._answering and self._answer.accept(token_id)


class _Constraint(Protocol):
    """`awq_edge.runtime.generation.Constraint`, which imports this module."""

    def mask(self, logits: Float32) -> Float32: ...

    def accept(self, token_id: int) -> bool: ...


def overlap(text: str, wanted: str) -> int:
    """Length of the longest end of `text` that begins `wanted` without being all of it."""
    for length in range(min(len(text), len(wanted) - 1), 0, -1):
        if text.endswith(wanted[:length]):
            return length
    return 0
