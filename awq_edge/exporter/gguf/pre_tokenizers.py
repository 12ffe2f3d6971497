r"""Names that llama.cpp has for the pre-tokenizers of tokenizer.json: how a text is cut into words
before pairs of bytes are merged.

Each is known by its steps, which have to be the same in every character. Source: llama.cpp's
llama-vocab.cpp, llm_tokenizer_bpe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"


def _by_case(contractions: str, digits: str) -> str:
    """Words that end where an upper-case letter follows a lower-case one."""
    return (
        rf"{_FIRST}{_UPPER}*{_LOWER}+{contractions}|{_FIRST}{_UPPER}+{_LOWER}*{contractions}|"
        rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


# The steps of a pre-tokenizer: "bytes" (each byte a character, nothing cut), "words" (GPT-2's
# expression, then bytes), "digits" (each one by itself), or the expression of a split.
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_SIGNS}|{_SPACES}"
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    # steps, and whether a word that is a token is one whatever the merges say
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((_LLAMA3, "bytes"), True): "llama-bpe",
    ((_LLAMA3, "bytes"), False): "dbrx",
    ((_QWEN2, "bytes"), False): "qwen2",
    ((_by_case("", r"\p{N}"), "bytes"), True): "tekken",
    ((_by_case(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"), "bytes"), False): "gpt-4o",
}


def llama_cpp_name(pre_tokenizer: Mapping[str, Any] | None, *, ignore_merges: bool) -> str | None:
    """`tokenizer.ggml.pre` of a byte-level tokenizer, None where llama.cpp has no such one.

    pre_tokenizer, ignore_merges: of tokenizer.json.
    """
    steps = tuple(_steps(pre_tokenizer or {}))
    return _NAMES.get((steps, ignore_merges))


def names() -> dict[str, tuple[tuple[str, ...], bool]]:
    """Every name with its steps, and whether words that are tokens go before merges."""
    return {name: key for key, name in _NAMES.items()}


def _steps(pre_tokenizer: Mapping[str, Any]) -> Iterator[str]:
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        for each in pre_tokenizer["pretokenizers"]:
            yield from _steps(each)
    elif kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        yield "words" if pre_tokenizer.get("use_regex", True) else "bytes"
    elif kind == "Digits" and pre_tokenizer["individual_digits"]:
        yield "digits"
    elif kind == "Split" and pre_tokenizer["behavior"] == "Isolated":
        inverted = "inverted " if pre_tokenizer["invert"] else ""
        yield inverted + str(pre_tokenizer["pattern"].get("Regex"))
    else:
        yield f"unknown {kind}"
