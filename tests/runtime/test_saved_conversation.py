"""Conversations as files: what is written is read, and what is no conversation is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awq_edge.errors import ConfigError, ResourceError
from awq_edge.runtime.conversation import Conversation
from awq_edge.runtime.model import Model, load
from awq_edge.runtime.sampling import Sampling
from awq_edge.runtime.saved_conversation import SavedConversation, SavedMessage, read, save

DRAWN = Sampling(1.0, seed=1)


@pytest.fixture
def model(tiny_chat_bundle: Path) -> Iterator[Model]:
    with load(tiny_chat_bundle, threads=1) as opened:
        yield opened


def conversation(*texts: str, system: str | None = None) -> SavedConversation:
    roles = ["user", "assistant"] * len(texts)
    messages = [SavedMessage(role="system", content=system)] if system else []
    messages += [
        SavedMessage(role=role, content=text)  # type: ignore[arg-type]
        for role, text in zip(roles, texts, strict=False)
    ]
    return SavedConversation(model_name="m", messages=tuple(messages))


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    saved = conversation("Grüße\n\t\u0000", "😀", system="Be brief.")
    save(path, saved)
    assert read(path) == saved
    assert json.loads(path.read_text(encoding="utf-8"))["schema_version"] == 1
    assert path.stat().st_mode & 0o777 == 0o600
    longer = conversation("Grüße\n\t\u0000", "😀", "And?", "Ho", system="Be long.")
    save(path, longer)  # it goes on with what is there
    assert read(path) == longer
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]


def test_a_file_that_is_no_conversation_is_not_replaced(tmp_path: Path) -> None:
    for text in ("my notes", "[]", '{"format": "other"}'):
        path = tmp_path / "notes"
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no saved conversation; choose another"):
            save(path, conversation())
        assert path.read_text() == text


@pytest.mark.parametrize("turns", [(), ("Hi", "Other"), ("And?", "Yes"), ("Hi", "Ho")])
def test_a_conversation_that_would_be_lost_is_not_replaced(
    turns: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    old = conversation("Hi", "Ho", "And?", "Yes")
    save(path, old)
    with pytest.raises(ConfigError, match="of 2 turns that is not the beginning of this one"):
        save(path, conversation(*turns))
    assert read(path) == old
    save(path, conversation(*turns), replace=True)
    assert read(path) == conversation(*turns)


def test_a_conversation_of_another_version_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    text = '{"format": "awq-edge-conversation", "schema_version": 9}'
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"schema_version 9.*/save! replaces it"):
        save(path, conversation())
    assert path.read_text() == text


def test_a_save_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chat.json"
    save(path, conversation("Hi", "Ho"))

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        save(path, conversation("Hi", "Ho", "And?", "So"))
    assert read(path) == conversation("Hi", "Ho")
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "has schema_version 2, this awq-edge"),
        ({"format": "x"}, "is not a saved conversation"),
        ({"extra": 1}, "(extra: Extra inputs"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "they are user"),
        ({"messages": [{"role": "assistant", "content": "Hi"}] * 2}, "in turns"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "role"),
        ({"messages": "Hi"}, "messages"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(json.loads(conversation("a", "b").model_dump_json()) | change))
    with pytest.raises(ConfigError) as refused:
        read(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"chat\.json"):
        read(path)


def test_folders_pipes_and_nothing_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    plain = "not a plain file"
    for name, words in (("", plain), ("pipe", plain), ("no", "does not exist")):
        with pytest.raises(ConfigError, match=words):
            read(tmp_path / name)


def test_a_loaded_conversation_goes_on(model: Model) -> None:
    first = Conversation(model, system="Be brief.", sampling=DRAWN, max_new_tokens=10)
    list(first.ask("Hello there"))
    saved = first.saved()
    messages = [*first.messages, {"role": "user", "content": "And then?"}]
    expected = model.generate(messages, temperature=1.0, seed=1, max_new_tokens=10).text
    model.session.reset()
    second = Conversation(model, sampling=DRAWN, max_new_tokens=10)
    tokens = second.restore(saved)
    assert tokens == model.session.past_length > 0
    turn = second.ask("And then?")
    assert "".join(turn) == expected
    # What was loaded was computed then, not with the message.
    assert turn.result.timings.reused_tokens == tokens
    assert second.messages[:-2] == first.messages
    second.reset()
    assert second.messages == [{"role": "system", "content": "Be brief."}]


def test_what_does_not_fit_the_context_is_dropped_and_counted(model: Model) -> None:
    saved = conversation(*[f"some words {'and more ' * 6}{n}" for n in range(20)], system="Short.")
    chat = Conversation(model, max_new_tokens=4)
    chat.restore(saved)
    kept = (len(chat.messages) - 1) // 2
    assert 0 < kept < 10
    assert chat.dropped_turns == 10 - kept
    assert chat.messages[0]["content"] == "Short."
    assert chat.messages[-1]["content"] == saved.messages[-1].content
    # What is saved again is all of it, not what the context had room for.
    assert chat.saved().messages == saved.messages and chat.saved().dropped_turns == 0
    assert "".join(turn := chat.ask("Go on")) == turn.result.text


def test_what_the_model_cannot_have_changes_nothing(model: Model, tiny_bundle: Path) -> None:
    chat = Conversation(model, max_new_tokens=4)
    list(chat.ask("Hi"))
    before = list(chat.messages)
    with pytest.raises(ResourceError, match="the system prompt has"):
        chat.restore(conversation("a", "b", system="word " * 400))
    assert chat.messages == before
    with load(tiny_bundle, threads=1) as plain, pytest.raises(ConfigError, match="no chat templ"):
        Conversation(plain).restore(conversation("a", "b", system="Be brief."))


def test_without_a_template_it_is_restored_too(tiny_bundle: Path) -> None:
    with load(tiny_bundle, threads=1) as plain:
        chat = Conversation(plain, sampling=DRAWN, max_new_tokens=6)
        assert chat.restore(conversation("Once upon", " a time")) > 0
        turn = chat.ask("there was")
        list(turn)
        assert turn.result.timings.reused_tokens > 0
        assert plain.tokenizer.decode(turn.result.prompt_ids).endswith(" a time\nthere was")


def test_a_cancelled_load_keeps_the_conversation_and_part_of_the_cache(model: Model) -> None:
    chat = Conversation(model, max_new_tokens=4)
    saved = conversation(*["some words"] * 10)
    calls = iter([False, True])
    assert chat.restore(saved, lambda: next(calls)) == model.session.prefill_chunk
    assert len(chat.messages) == 10
    assert "".join(turn := chat.ask("Go on")) == turn.result.text
