"""A chat on a real bundle: the history stays in the KV cache, and makes the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awq_edge.errors import ConfigError, ResourceError
from awq_edge.runtime.conversation import Conversation
from awq_edge.runtime.generation import Generation
from awq_edge.runtime.model import Model, load
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.saved_conversation import SavedConversation, SavedMessage

# Drawn, because a random model's greedy answers repeat one token.
DRAWN = Sampling(1.0, seed=1)


@pytest.fixture
def model(tiny_chat_bundle: Path) -> Iterator[Model]:
    with load(tiny_chat_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def plain(tiny_bundle: Path) -> Iterator[Model]:
    """A model without a chat template."""
    with load(tiny_bundle, threads=1) as opened:
        yield opened


def say(conversation: Conversation, text: str) -> Generation:
    turn = conversation.ask(text)
    shown = "".join(turn)
    assert shown == turn.result.text
    return turn.result


def test_a_turn_prefills_only_what_is_new(model: Model) -> None:
    conversation = Conversation(model, sampling=DRAWN, max_new_tokens=10)
    first = say(conversation, "Hello there")
    assert first.timings.reused_tokens == 0
    second = say(conversation, "And then?")
    history = [*first.prompt_ids, *first.ids]
    assert list(second.prompt_ids[: len(history)]) == history
    # All of it but the last token of an answer that ended at its limit, which was not run yet.
    assert second.timings.reused_tokens == len(history) - (first.finish_reason == "length")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert conversation.messages[1]["content"] == first.text


def test_the_kept_cache_gives_the_answer_of_a_fresh_one(model: Model) -> None:
    conversation = Conversation(model, sampling=DRAWN, max_new_tokens=10)
    say(conversation, "Hello there")
    second = say(conversation, "And then?")
    assert second.timings.reused_tokens > 0
    model.session.reset()
    from awq_edge.runtime.generation import Request

    request = Request(
        second.prompt_ids,
        max_new_tokens=10,
        sampling=DRAWN,
        stop_token_ids=model.stop_token_ids,
    )
    assert model.stream_request(request).finish().ids == second.ids


def test_the_prompt_is_the_templates(model: Model) -> None:
    conversation = Conversation(model, system="Be brief.", max_new_tokens=4)
    first = say(conversation, "Hi")
    rendered = model.tokenizer.decode(first.prompt_ids, skip_special_tokens=False)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_oldest_turns_are_dropped_and_the_system_prompt_stays(model: Model) -> None:
    conversation = Conversation(model, system="Be brief.", sampling=DRAWN, max_new_tokens=20)
    for count in range(12):
        result = say(conversation, f"Question number {count}, which is not short?")
        assert len(result.prompt_ids) + len(result.ids) <= model.session.context + 1
    assert conversation.dropped_turns > 0
    assert conversation.messages[0] == {"role": "system", "content": "Be brief."}
    assert conversation.messages[1]["content"] != "Question number 0, which is not short?"
    assert conversation.messages[-2]["content"] == "Question number 11, which is not short?"
    kept = (len(conversation.messages) - 1) // 2
    assert kept + conversation.dropped_turns == 12


def test_a_question_that_is_taken_back_drops_nothing(model: Model) -> None:
    conversation = Conversation(model, sampling=DRAWN, max_new_tokens=20)
    while not conversation.dropped_turns:
        say(conversation, "A question, which is not short?")
    before, messages = conversation.dropped_turns, list(conversation.messages)
    for _ in range(3):
        turn = conversation.ask("Another one, which is stopped at once?", cancelled=lambda: True)
        assert "".join(turn) == "" and turn.dropped > 0
    assert conversation.dropped_turns == before and conversation.messages == messages


def test_a_long_conversation_is_loaded_with_few_encodings(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [
        SavedMessage(role=role, content=f"Number {count}, which is not short.")
        for count in range(2000)
        for role in ("user", "assistant")
    ]
    saved = SavedConversation(model_name="tiny-chat", messages=tuple(messages))
    encodings, encode = 0, model.tokenizer.encode

    def counted(*arguments: Any, **named: Any) -> list[int]:
        nonlocal encodings
        encodings += 1
        return encode(*arguments, **named)

    monkeypatch.setattr(model.tokenizer, "encode", counted)
    conversation = Conversation(model)
    assert 0 < conversation.restore(saved) <= model.session.context
    assert encodings < 20
    kept = len(conversation.messages) // 2
    assert kept > 0 and kept + conversation.dropped_turns == 2000
    assert conversation.messages[-1]["content"] == "Number 1999, which is not short."


def test_an_answer_without_limit_ends_with_the_context(plain: Model) -> None:
    plain.stop_token_ids = frozenset()
    conversation = Conversation(plain, sampling=DRAWN)
    result = say(conversation, "Hello")
    assert result.finish_reason == "context"
    assert plain.session.past_length == plain.session.context


def test_a_message_that_does_not_fit_changes_nothing(model: Model) -> None:
    conversation = Conversation(model, max_new_tokens=4)
    say(conversation, "Hi")
    before = list(conversation.messages)
    with pytest.raises(ResourceError, match="does not fit the context of 256"):
        conversation.ask("word " * 400)
    assert conversation.messages == before
    assert conversation.dropped_turns == 0
    say(conversation, "Still here?")
    assert len(conversation.messages) == 4


def test_a_cancelled_answer_is_kept_as_far_as_it_came(model: Model) -> None:
    conversation = Conversation(model, sampling=DRAWN, max_new_tokens=20)
    shown: list[str] = []
    for piece in (turn := conversation.ask("Hi", cancelled=lambda: len(shown) == 3)):
        shown.append(piece)
    assert turn.result.finish_reason == "cancelled"
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(shown)}


def test_a_message_that_was_not_answered_is_taken_back(model: Model) -> None:
    conversation = Conversation(model)
    assert list(conversation.ask("Hi", cancelled=lambda: True)) == []
    assert conversation.messages == []


def test_reset_forgets_all_but_the_system_prompt(model: Model) -> None:
    conversation = Conversation(model, system="Be brief.", max_new_tokens=4)
    say(conversation, "Hi")
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    assert say(conversation, "Hi").timings.reused_tokens == 0


def test_without_a_template_texts_are_continued(plain: Model) -> None:
    conversation = Conversation(plain, sampling=DRAWN, max_new_tokens=6)
    first = say(conversation, "Once upon")
    second = say(conversation, "and then")
    history = (*first.prompt_ids, *first.ids)
    assert second.prompt_ids[: len(history)] == history
    assert plain.tokenizer.decode(second.prompt_ids).endswith("\nand then")
    assert second.timings.reused_tokens == len(history) - (first.finish_reason == "length")


def test_system_prompt_without_a_template_is_refused(plain: Model) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        Conversation(plain, system="Be brief.")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_message_is_refused(model: Model, text: str) -> None:
    with pytest.raises(ConfigError, match="the message is empty"):
        Conversation(model).ask(text)
