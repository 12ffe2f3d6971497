"""A chat over one session: the KV cache keeps the history, each turn prefills only its new ids.

    ids in the cache:  [prompt of turn 1][answer 1] | [new text: end of answer 1, question 2, ...]
                       └──────────── kept ─────────┘ └─ encoded and prefilled at turn 2 ─────────┘

The answer's ids are kept as they were generated: encoding its text again may split it differently.
"""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from awq_edge.errors import ConfigError, ResourceError
from awq_edge.runtime.chat_template import Message
from awq_edge.runtime.generation import (
    Generation,
    Request,
    TextStream,
    ThoughtRules,
    common_prefix,
)
from awq_edge.runtime.model import ChatOptions, Model
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.saved_conversation import SavedConversation, SavedMessage
from awq_edge.runtime.thoughts import TextDelta

# Tokens of the context that are kept free for an answer, unless its limit asks for fewer.
_ANSWER_ROOM = 128


@dataclass(frozen=True)
class _Said:
    """The conversation so far: its rendered text, and the ids of it."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Question:
    """A message with the conversation before it. dropped: the number of oldest turns left out."""

    messages: list[Message]
    text: str
    ids: list[int]
    dropped: int = 0


class Conversation:
    """Turns of a chat. Without a chat template the texts are continued one after the other."""

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ConfigError for a system prompt where the model has no chat template.

        max_new_tokens: of one answer; None means until the model stops or the context ends.
        variables: of the chat template, beside the messages.
        """
        self._model = model
        self._require_template(system)
        self._system = system
        self.sampling = sampling or Sampling()
        self.max_new_tokens = max_new_tokens
        self.stop = stop
        self._options = ChatOptions(variables)
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self.messages: list[Message] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        # Everything that was said, also what the context has no room for any more.
        self.transcript: list[Message] = list(self.messages)
        self._lost_turns = 0  # that the file, which the conversation comes from, had not
        self.dropped_turns = 0
        self._said: _Said | None = None
        self._model.session.reset()

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self._system

    def set_system(self, text: str | None) -> None:
        """Go on with another system prompt, or without one: the next message prefills the whole
        conversation again. Raises ConfigError where the model has no chat template."""
        self._require_template(text)
        self._system = text
        prompt: list[Message] = [] if text is None else [{"role": "system", "content": text}]
        self.messages = prompt + _without_system(self.messages)
        self.transcript = prompt + _without_system(self.transcript)
        self._said = None

    def take_back(self) -> str:
        """Forget the last question and its answer; returns the question.

        Raises ConfigError where there is none.
        """
        if not _without_system(self.messages):
            raise ConfigError("there is no message yet that could be answered again")
        question = str(self.messages[-2]["content"])
        del self.messages[-2:], self.transcript[-2:]
        self._said = None
        return question

    def _require_template(self, system: str | None) -> None:
        if system is not None and self._model.chat_template is None:
            raise ConfigError(
                f"{self._model.bundle.path} has no chat template, so no --system prompt"
            )

    def ask(self, text: str, cancelled: Callable[[], bool] | None = None) -> Turn:
        """Send a message; iterate the result for the answer's text as it comes.

        Where the context is full the oldest turns are dropped: `dropped_turns` counts them. Raises
        ResourceError when the message alone does not fit the context.
        """
        if not text.strip():
            raise ConfigError("the message is empty")
        started = time.perf_counter()
        question = self._fit([*self.messages, {"role": "user", "content": text}])
        limit = self.max_new_tokens
        room = self._model.session.context - len(question.ids) + 1
        if limit is not None and limit > room:
            limit = None  # the context ends first
        request = Request(
            prompt_ids=question.ids,
            max_new_tokens=limit,
            sampling=self.sampling,
            stop=(*self.stop, *self._model.turn_end_texts),
            stop_token_ids=self._model.stop_token_ids,
            cancelled=cancelled,
            thoughts=self._thought_rules(question),
        )
        stream = self._model.stream_request(request, reuse_cache=True, started=started)
        return Turn(self, question, stream)

    def saved(self) -> SavedConversation:
        """The conversation so far, to be written to a file, dropped turns included."""
        return SavedConversation(
            model_name=self._model.manifest.model_name,
            dropped_turns=self._lost_turns,
            messages=tuple(SavedMessage.model_validate(dict(m)) for m in self.transcript),
        )

    def restore(self, saved: SavedConversation, cancelled: Callable[[], bool] | None = None) -> int:
        """Go on with a saved conversation; returns the number of its tokens that are in the KV
        cache now.

        Its system prompt, or its lack of one, replaces the present one. Where it does not fit the
        context its oldest turns are dropped. Raises ConfigError and ResourceError where the model
        cannot continue it; the present conversation is then unchanged.
        """
        messages: list[Message] = [m.model_dump(exclude_none=True) for m in saved.messages]
        system = next((m["content"] for m in messages if m["role"] == "system"), None)
        if system is not None and self._model.chat_template is None:
            raise ConfigError(
                f"{self._model.bundle.path} has no chat template, and the conversation has a "
                "system prompt; load it with a model that has one"
            )
        ids, kept, dropped = self._history(messages)
        self._system, self.messages, self._said = system, kept, None
        self.transcript = messages
        self._lost_turns = saved.dropped_turns
        self.dropped_turns = saved.dropped_turns + dropped
        self._prefill(ids, cancelled)
        return self._model.session.past_length

    def _history(self, messages: list[Message]) -> tuple[list[int], list[Message], int]:
        """Ids of a conversation that waits for a message, the messages kept of it, the turns
        dropped."""
        context = self._model.session.context
        template, tokenizer = self._model.chat_template, self._model.tokenizer
        first = 1 if messages and messages[0]["role"] == "system" else 0

        def without(dropped: int) -> list[Message]:
            return messages[:first] + messages[first + 2 * dropped :]

        def ids_of(kept: list[Message]) -> list[int]:
            if template is None:
                return tokenizer.encode(_continued(kept))
            if not kept:
                return []
            variables = self._options.variables
            text = template.render(kept, add_generation_prompt=False, variables=variables)
            return tokenizer.encode(text, add_special_tokens=False)

        # Fewer turns are fewer tokens: a search by halves, since each try encodes everything.
        turn_count, room = (len(messages) - first) // 2, context - min(_ANSWER_ROOM, context // 4)
        dropped = bisect.bisect_left(
            range(turn_count), True, key=lambda count: len(ids_of(without(count))) <= room
        )
        kept = without(dropped)
        ids = ids_of(kept)
        if len(ids) > room:
            raise ResourceError(
                f"the system prompt has {len(ids)} tokens, too many for the context of {context}"
            )
        return ids, kept, dropped

    def _prefill(self, ids: list[int], cancelled: Callable[[], bool] | None) -> None:
        """Bring the cache to `ids`; cancelled, to a beginning of them."""
        session = self._model.session
        session.truncate(common_prefix(session.cached_ids, ids))
        for begin in range(session.past_length, len(ids), session.prefill_chunk):
            if cancelled is not None and cancelled():
                return
            session.prefill(ids[begin : begin + session.prefill_chunk])

    def _fit(self, messages: list[Message]) -> _Question:
        """The last of the messages, without the oldest turns where they leave no room."""
        context = self._model.session.context
        room = min(_ANSWER_ROOM, context // 4, self.max_new_tokens or context)
        dropped = 0
        while True:
            rendered, ids = self._encode(messages)
            if len(ids) + room <= context:
                return _Question(messages, rendered, ids, dropped)
            first = 1 if messages[0]["role"] == "system" else 0
            if len(messages) <= first + 1:
                raise ResourceError(
                    f"the message makes a prompt of {len(ids)} tokens, which with room for an "
                    f"answer ({room}) does not fit the context of {context}; shorten it"
                )
            messages = messages[:first] + messages[first + 2 :]
            dropped += 1

    def _thought_rules(self, question: _Question) -> ThoughtRules | None:
        markers, template = self._model.thought_markers, self._model.chat_template
        if markers is None or template is None:
            return None
        rendering = self._options.rendering(question.messages)
        beginning = template.beginning(question.text, question.messages, **rendering)
        return ThoughtRules(markers, beginning)

    def _encode(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The rendered conversation and its ids, which continue the cached ones where these begin
        it."""
        tokenizer = self._model.tokenizer
        chat = self._model.chat_template is not None
        rendered = self._model.render(messages, self._options) if chat else _continued(messages)
        said = self._said
        if said is not None and rendered.startswith(said.text):
            rest = rendered[len(said.text) :]
            # Behind an added token the tokenizer starts afresh, so encoding the rest alone is
            # exact; a text without a template is a new piece each time.
            if not chat or tokenizer.starts_with_special_token(rest):
                return rendered, [*said.ids, *tokenizer.encode(rest, add_special_tokens=False)]
        return rendered, tokenizer.encode(rendered, add_special_tokens=not chat)

    def _finish(self, question: _Question, generation: Generation) -> None:
        if not generation.ids and generation.finish_reason == "cancelled":
            return  # nothing was answered: the message is taken back
        self.dropped_turns += question.dropped
        answer: dict[str, Any] = {"role": "assistant", "content": generation.text}
        if generation.thoughts:
            answer["reasoning_content"] = generation.thoughts
        self.messages = [*question.messages, answer]
        self.transcript += [question.messages[-1], answer]
        self._said = None
        # After a stop string the ids hold more than the text does.
        if generation.stop_string is None:
            ids = (*generation.prompt_ids, *generation.ids)
            self._said = _Said(question.text + generation.written, ids)


class Turn:
    """One answer on its way. When its iteration ends, however it ends, it joins the history."""

    def __init__(self, conversation: Conversation, question: _Question, stream: TextStream) -> None:
        self.dropped = question.dropped  # turns that are forgotten for this one
        self._conversation = conversation
        self._question = question
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        with contextlib.closing(self.pieces()) as pieces:
            yield from (piece.text for piece in pieces if not piece.thought)

    def pieces(self) -> Generator[TextDelta, None, None]:
        """Thoughts and answer as they come."""
        try:
            yield from self._stream.pieces()
        finally:
            self._conversation._finish(self._question, self._stream.result)

    @property
    def result(self) -> Generation:
        """The generation so far; final when the iteration has ended."""
        return self._stream.result


def _continued(messages: list[Message]) -> str:
    """A conversation without a template: an answer continues its question, which begins a line."""
    text = ""
    for message in messages:
        begins = message["role"] == "user" and text
        text += ("\n" if begins else "") + message["content"]
    return text


def _without_system(messages: list[Message]) -> list[Message]:
    """The messages without the system prompt."""
    return messages[1:] if messages and messages[0]["role"] == "system" else messages
