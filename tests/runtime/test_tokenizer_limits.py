"""Tokenizers that never end are found by their steps, and end in a line; all others are as fast."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from awq_edge.errors import ConfigError
from awq_edge.model.hub import resolve_model
from awq_edge.process import worker_process
from awq_edge.runtime import tokenizer as tokenizer_module
from awq_edge.runtime.tokenizer import Tokenizer as OurTokenizer
from awq_edge.runtime.tokenizer_limits import is_plain

# In the manner of GPT-2, Llama 3, o200k, DeepSeek and Tekken.
PLAIN_EXPRESSIONS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}]+[\r\n]*|\s*[\r\n]+|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[\\p{P}\\p{S}]+[\r\n]*",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)",
    r"[\p{Lu}&&[^\p{Han}]]+",
    " {2,}",
]
ENDLESS_EXPRESSIONS = [
    "(a+)+$",
    "((a+))+",
    "(a|a)*$",
    "(a?){30}a{30}",
    "(?:(?:a+)b?)+",
    "(a{1,5}){1,9}",
    "(x+x+)+y",
    r"(a)\1+",
    r"(?<n>a)\k<n>+",
    "a*a*a*a*a*a*$",
    "a{1000000}",
    "([a[b]+)*",
]
REPLACE = normalizers.Replace("a", "aaaaaaaaaa")


def letters() -> Tokenizer:
    vocabulary = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    return Tokenizer(models.BPE(vocabulary, []))


def hostile(name: str) -> Tokenizer:
    made = letters()
    if name == "growing":
        made.normalizer = normalizers.Sequence([REPLACE] * 12)
    elif name == "nested":
        inner = normalizers.Sequence([REPLACE] * 6)
        made.normalizer = normalizers.Sequence([inner, inner])
    elif name == "expression":
        made.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    elif name == "every match grows":
        made.normalizer = normalizers.Sequence([normalizers.Replace(Regex("."), "aaaaaaaaaa")] * 12)
    elif name == "prefix":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("a" * 1000)])
    return made


@pytest.mark.parametrize("expression", PLAIN_EXPRESSIONS)
def test_expressions_of_real_tokenizers_are_plain(expression: str) -> None:
    made = letters()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(expression), "isolated")
    assert is_plain(made)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(
        single="a $A b", special_tokens=[("a", 0), ("b", 1)]
    )
    assert is_plain(made)


@pytest.mark.parametrize("expression", ENDLESS_EXPRESSIONS)
def test_expressions_that_may_not_end_are_found(expression: str) -> None:
    made = letters()
    try:
        made.pre_tokenizer = pre_tokenizers.Split(Regex(expression), "isolated")
    except Exception:
        pytest.skip(reason="the library does not take it")
    assert not is_plain(made)


@pytest.mark.parametrize(
    "decoder",
    [decoders.Sequence([decoders.Replace("a", "aaa")] * 3), decoders.Replace("a", "a" * 100)],
)
def test_decoders_that_grow_are_found(decoder: Any) -> None:
    made = letters()
    made.decoder = decoder
    assert not is_plain(made)


@pytest.mark.parametrize("name", ["growing", "nested", "expression", "every match grows"])
def test_what_does_not_end_is_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "CPU_SECONDS", 1.0)
    hostile(name).save(str(tmp_path / "tokenizer.json"))
    made = OurTokenizer(tmp_path)
    started = time.process_time()
    with pytest.raises(ConfigError, match="the tokenizer was ended"):
        made.encode("a" * 40 + "b")
    assert time.process_time() - started < 1.0  # this process computed next to nothing
    assert made.encode("") == []  # the next one works


def test_a_guarded_tokenizer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Once upon a time — 🙂 <s>"
    plain = OurTokenizer(resolve_model("demo"))
    monkeypatch.setattr(tokenizer_module, "is_plain", lambda backend: False)
    guarded = OurTokenizer(resolve_model("demo"))
    ids = plain.encode(text)
    assert guarded.encode(text) == ids
    assert guarded.decode(ids) == plain.decode(ids)
    assert guarded.decode(ids, skip_special_tokens=False) == plain.decode(
        ids, skip_special_tokens=False
    )
    stream = guarded.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == plain.decode(ids)


def test_a_real_tokenizer_is_not_guarded() -> None:
    assert OurTokenizer(resolve_model("demo"))._guarded is None
