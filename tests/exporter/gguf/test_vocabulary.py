"""Vocabularies of files, and tokenizers that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="needs the [gguf] extra")

from gguf import TokenType

from awq_edge.errors import ModelError
from awq_edge.exporter.gguf.pre_tokenizers import names
from awq_edge.exporter.gguf.vocabulary import Vocabulary, read_vocabulary
from awq_edge.runtime.tokenizer import Tokenizer
from tests.exporter.models import tiny_decoder
from tests.tiny_models import CHAT_TEMPLATE, save_tokenizer

from .tokenizers_of_kinds import SIZE, SPACE, save_byte_level, save_sentencepiece

VOCAB = SIZE + 8  # rows of the embedding: more than there are tokens
Change = Callable[[dict[str, Any]], object]


def read(path: Path, vocab_size: int = VOCAB, **changes: Any) -> Vocabulary:
    from dataclasses import replace

    return read_vocabulary(path, replace(tiny_decoder("llama"), vocab_size=vocab_size, **changes))


@pytest.mark.parametrize("name", names())
def test_a_pre_tokenizer_is_known_by_its_steps(name: str, tmp_path: Path) -> None:
    vocabulary = read(save_byte_level(tmp_path, name))
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", name)
    assert vocabulary.merges and not vocabulary.scores
    assert vocabulary.adds_bos and not vocabulary.adds_eos


def test_types_of_tokens(tmp_path: Path) -> None:
    vocabulary = read(save_byte_level(tmp_path, "gpt-2"))
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert kinds["<s>"] == kinds["<|user|>"] == TokenType.CONTROL
    assert kinds["<tool>"] == TokenType.USER_DEFINED
    assert kinds["a"] == TokenType.NORMAL
    assert kinds[f"[PAD{VOCAB - 1}]"] == TokenType.UNUSED
    assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == VOCAB


def test_padding_has_no_text_of_a_token(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path, "gpt-2")
    stored = json.loads((path / "tokenizer.json").read_text())
    stored["added_tokens"][-1]["content"] = f"[PAD{VOCAB - 1}]"
    (path / "tokenizer.json").write_text(json.dumps(stored))
    tokens = read(path).tokens
    assert tokens[-1] == f"[[PAD{VOCAB - 1}]]" and len(set(tokens)) == VOCAB


def test_sentencepiece(tmp_path: Path) -> None:
    vocabulary = read(save_sentencepiece(tmp_path))
    kinds = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert (vocabulary.model, vocabulary.pre, vocabulary.space_prefix) == ("llama", "default", True)
    assert kinds["<unk>"] == TokenType.UNKNOWN and kinds["<0x41>"] == TokenType.BYTE
    assert not vocabulary.merges
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    first, *_ = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert scores["".join(first)] == 0 == max(scores.values())
    assert scores["<tool>"] < scores["a"] < min(s for t, s in scores.items() if len(t) == 2)


def test_without_a_space_before_a_text(tmp_path: Path) -> None:
    assert not read(save_sentencepiece(tmp_path, prefix=False)).space_prefix
    never = read(save_sentencepiece(tmp_path / "never", metaspace=True, prefix=False))
    assert not never.space_prefix and never.notes == ()
    first = read(save_sentencepiece(tmp_path / "first", metaspace=True))
    assert first.space_prefix and "with one and behind a special token too" in first.notes[0]


def test_special_ids_and_chat_template(tmp_path: Path) -> None:
    vocabulary = read(save_tokenizer(tmp_path, chat=True), eos_token_ids=(1,))
    # The tokenizer's own, <|im_end|>, and beside it the one that config.json names.
    assert vocabulary.special_ids == {"bos": 0, "eos": 3, "eot": 1}
    assert vocabulary.chat_template == CHAT_TEMPLATE


def test_tokens_without_a_row_are_left_out(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path, "gpt-2")
    rows = Tokenizer(path).vocab_size - 4
    vocabulary = read(path, vocab_size=rows)
    assert len(vocabulary.tokens) == rows
    assert vocabulary.notes == ("4 tokens have no row in the embedding and are left out",)


def _at(*keys: str | int, value: Any) -> Change:
    def change(stored: dict[str, Any]) -> None:
        place: Any = stored
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


BYTE_LEVEL: dict[str, tuple[Change, str]] = {
    "another split": (
        _at("pre_tokenizer", value={"type": "WhitespaceSplit"}),
        "its pre-tokenizer .* known of llama.cpp: gpt-2, smollm",
    ),
    "a space before": (_at("pre_tokenizer", "add_prefix_space", value=True), "its pre-tokenizer"),
    "merges ignored": (_at("model", "ignore_merges", value=True), "its pre-tokenizer"),
    "lower case": (_at("normalizer", value={"type": "Lowercase"}), "no normalizer 'Lowercase'"),
    "dropout": (_at("model", "dropout", value=0.1), "no dropout"),
}
SENTENCEPIECE: dict[str, tuple[Change, str]] = {
    "no bytes": (lambda s: _without(s, "<0x41>"), "the token <0x41> is missing"),
    "another normalizer": (_at("normalizer", "normalizers", 0, value={"type": "NFKC"}),
                           "no normalizer 'NFKC'"),
    "words": (_at("pre_tokenizer", value={"type": "WhitespaceSplit"}), "cuts no words by"),
    "spaces stay": (_at("normalizer", value=None), "nothing replaces spaces"),
    "an endless token": (
        lambda s: s["model"]["vocab"].update({"x" * 2000: SIZE + 1}),
        "has 2,000 characters",
    ),
    "merges apart": (
        lambda s: s["model"]["merges"].append(s["model"]["merges"].pop(_doubled(s))),
        "do not stand together",
    ),
    "a pair is missing": (lambda s: s["model"]["merges"].pop(_doubled(s)), "is not merged of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_a_byte_level_tokenizer_that_llama_cpp_lacks(kind: str, tmp_path: Path) -> None:
    change, reason = BYTE_LEVEL[kind]
    _refused(save_byte_level(tmp_path, "gpt-2"), change, reason)


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_a_sentencepiece_tokenizer_that_llama_cpp_lacks(kind: str, tmp_path: Path) -> None:
    change, reason = SENTENCEPIECE[kind]
    _refused(save_sentencepiece(tmp_path), change, reason)


def test_another_model_is_named(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path, "gpt-2")
    stored = json.loads((path / "tokenizer.json").read_text())
    stored["model"] = {"type": "WordLevel", "vocab": {"<s>": 0, "a": 1}, "unk_token": "<s>"}
    stored["post_processor"], stored["added_tokens"] = None, []
    (path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="its model is 'WordLevel', and BPE alone is written"):
        read(path)


def test_two_tokens_before_a_text(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path, "gpt-2")
    change = _at("post_processor", "single", 0, "SpecialToken", "id", value="two")
    ids = {"two": {"id": "two", "ids": [1, 3], "tokens": ["<s>", "<|user|>"]}}
    stored = json.loads((path / "tokenizer.json").read_text())
    change(stored)
    stored["post_processor"]["special_tokens"] = ids
    (path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match=r"it puts the tokens \[1, 3\] before a text"):
        read(path)


def test_no_token_ends_a_text(tmp_path: Path) -> None:
    path = save_byte_level(tmp_path, "gpt-2")
    (path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(ModelError, match="no token ends a text"):
        read(path, eos_token_ids=())


def _refused(path: Path, change: Change, reason: str) -> None:
    read(path)  # as it was
    stored = json.loads((path / "tokenizer.json").read_text())
    change(stored)
    (path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match=reason):
        read(path)


def _doubled(stored: dict[str, Any]) -> int:
    """The place of a merge whose token another one, right before it, makes too."""
    merges = ["".join(pair) for pair in stored["model"]["merges"]]
    return next(n for n in range(1, len(merges)) if merges[n] == merges[n - 1])


def _without(stored: dict[str, Any], token: str) -> None:
    """Another name for a token."""
    vocab = stored["model"]["vocab"]
    vocab[f"{token}{SPACE}"] = vocab.pop(token)
