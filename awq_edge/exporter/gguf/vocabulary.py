"""Keys of a GGUF file that describe the tokenizer, from tokenizer.json.

    byte-level BPE                    tokenizer.ggml.model gpt2: tokens, merges, how words are cut
    SentencePiece's BPE, of characters with bytes for what is unknown
                                      llama: tokens with scores, by which pairs are merged

What llama.cpp would cut otherwise is refused, not written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from awq_edge.artifacts.input_files import show_text
from awq_edge.errors import ModelError
from awq_edge.exporter.gguf.pre_tokenizers import llama_cpp_name, names
from awq_edge.model.archs import Decoder
from awq_edge.runtime.chat_template import load_chat_template
from awq_edge.runtime.tokenizer import Tokenizer, stop_token_ids

_SPACE = "\u2581"  # SentencePiece's sign for a space
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_ADDED_SCORE = -1000.0  # as llama.cpp's converter has it: merged after everything else
_PROBE = "a"
_LONGEST_TOKEN = 1_000  # characters, whose every cut is looked at; those in use have 100


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF has it.

    model: tokenizer.ggml.model. pre: tokenizer.ggml.pre. tokens, types: one entry an id of the
    embedding. scores: of SentencePiece's, else empty. merges: of a byte-level one, "left right".
    space_prefix: a text begins with a space. adds_bos, adds_eos: around a text.
    special_ids: by the key's middle ("bos"). chat_template: Jinja. notes: what differs.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    space_prefix: bool
    adds_bos: bool
    adds_eos: bool
    special_ids: Mapping[str, int]
    chat_template: str | None
    notes: tuple[str, ...] = ()

    def add_to(self, writer: GGUFWriter) -> None:
        """Add every key to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        if self.merges:
            writer.add_token_merges(self.merges)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        add_id = {
            "bos": writer.add_bos_token_id,
            "eos": writer.add_eos_token_id,
            "eot": writer.add_eot_token_id,
            "unknown": writer.add_unk_token_id,
            "padding": writer.add_pad_token_id,
        }
        for name, number in self.special_ids.items():
            add_id[name](number)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(path: Path, decoder: Decoder) -> Vocabulary:
    """The vocabulary of a model directory.

    Raises ModelError naming what of the tokenizer llama.cpp does otherwise.
    """
    tokenizer = Tokenizer(path)
    stored = json.loads(tokenizer.to_json())
    reader = _Reader(path / "tokenizer.json", tokenizer, stored, decoder)
    return reader.read()


class _Reader:
    """Makes a vocabulary of one tokenizer.json."""

    def __init__(
        self, file: Path, tokenizer: Tokenizer, stored: Mapping[str, Any], decoder: Decoder
    ) -> None:
        """stored: the object of tokenizer.json."""
        self._file = file
        self._tokenizer = tokenizer
        self._stored = stored
        self._model: Mapping[str, Any] = stored["model"]
        self._decoder = decoder
        self._added = {token["id"]: token for token in stored["added_tokens"]}
        self._notes: list[str] = []

    def read(self) -> Vocabulary:
        kind = self._model.get("type")
        if kind != "BPE":
            raise self._refusal(f"its model is '{kind}', and BPE alone is written")
        if self._model.get("dropout") or self._model.get("continuing_subword_prefix"):
            raise self._refusal("llama.cpp has no dropout and no prefix of word pieces")
        if self._model.get("byte_fallback"):
            return self._sentencepiece()
        return self._byte_level()

    def _byte_level(self) -> Vocabulary:
        normalizer = self._stored["normalizer"]
        if normalizer is not None and normalizer["type"] != "NFC":
            raise self._refusal(f"llama.cpp has no normalizer '{normalizer['type']}'")
        if normalizer is not None:
            self._notes.append(
                "the tokenizer composes characters (NFC), which llama.cpp leaves as they are"
            )
        pre = llama_cpp_name(
            self._stored["pre_tokenizer"], ignore_merges=bool(self._model.get("ignore_merges"))
        )
        if pre is None:
            raise self._refusal(
                "its pre-tokenizer (how a text is cut into words) is none that is known of "
                f"llama.cpp: {', '.join(names())}"
            )
        merges = tuple(" ".join(pair) for pair in self._merges())
        return self._vocabulary("gpt2", pre, merges=merges)

    def _sentencepiece(self) -> Vocabulary:
        space_prefix = self._space_prefix()
        missing = [text for text in _BYTES if text not in self._model["vocab"]]
        if missing:
            raise self._refusal(f"byte_fallback is true and the token {missing[0]} is missing")
        scores = self._scores()
        return self._vocabulary("llama", "default", scores=scores, space_prefix=space_prefix)

    def _space_prefix(self) -> bool:
        """Whether a space is put before a text; refuses steps other than SentencePiece's."""
        normalizers = _sequence(self._stored["normalizer"], "normalizers")
        steps = _sequence(self._stored["pre_tokenizer"], "pretokenizers")
        prefix = False
        for step in normalizers:
            if step["type"] == "Prepend" and step["prepend"] == _SPACE:
                prefix = True
            elif step["type"] != "Replace" or not _replaces_spaces(step):
                raise self._refusal(f"llama.cpp has no normalizer '{step['type']}' beside spaces")
        for step in steps:
            if step["type"] == "Metaspace" and step.get("split") is False:
                scheme = step.get("prepend_scheme", "always")
                prefix = scheme != "never"
                if prefix:
                    behind = " and behind a special token" if scheme == "first" else ""
                    self._notes.append(
                        f"llama.cpp puts a space before a text that begins with one{behind} too, "
                        "which the tokenizer does not"
                    )
            elif not (
                step["type"] == "Split" and step["pattern"] == {"String": " "} and normalizers
            ):
                raise self._refusal(f"llama.cpp cuts no words by '{step['type']}' there")
        if not normalizers and not any(step["type"] == "Metaspace" for step in steps):
            raise self._refusal("nothing replaces spaces, as llama.cpp does")
        return prefix

    def _scores(self) -> tuple[float, ...]:
        """Scores by which llama.cpp merges in the order of the merges: minus the rank of the first
        merge that makes a token, counted in tokens."""
        vocab: Mapping[str, int] = self._model["vocab"]
        ranks: dict[str, int] = {}
        pairs = set()
        last = -1
        for left, right in self._merges():
            pairs.add((left, right))
            rank = ranks.setdefault(left + right, len(ranks))
            if rank < last:
                raise self._refusal(
                    f"the merges of '{show_text(left + right)}' do not stand together, and "
                    "llama.cpp merges by one score a token"
                )
            last = rank
        ordinary = {text for text, number in vocab.items() if self._is_ordinary(number, text)}
        for text in ordinary:
            if len(text) > _LONGEST_TOKEN:
                raise self._refusal(f"'{show_text(text)}' has {len(text):,} characters")
            for end in range(1, len(text)):
                pair = (text[:end], text[end:])
                if pair not in pairs and pair[0] in ordinary and pair[1] in ordinary:
                    raise self._refusal(
                        f"'{show_text(text)}' is not merged of '{show_text(pair[0])}' and "
                        f"'{show_text(pair[1])}', and llama.cpp would"
                    )
        scores = [_ADDED_SCORE - len(ranks)] * self._decoder.vocab_size
        for text, number in vocab.items():
            if number < len(scores) and text in ordinary:
                scores[number] = -float(ranks.get(text, len(ranks)))
        return tuple(scores)

    def _merges(self) -> list[tuple[str, str]]:
        """Pairs in their order; earlier files have "left right"."""
        pairs = [
            tuple(each.split(" ", 1)) if isinstance(each, str) else tuple(each)
            for each in self._model["merges"]
        ]
        return [(pair[0], pair[1]) for pair in pairs]

    def _vocabulary(
        self,
        model: str,
        pre: str,
        *,
        scores: tuple[float, ...] = (),
        merges: tuple[str, ...] = (),
        space_prefix: bool = False,
    ) -> Vocabulary:
        tokens, types = self._tokens(is_byte_level=model == "gpt2")
        adds_bos, adds_eos = self._around()
        template = load_chat_template(self._file.parent, self._tokenizer.special_tokens)
        if template is not None and not template.source:
            self._notes.append("the chat template cannot be read and is left out")
        return Vocabulary(
            model=model,
            pre=pre,
            tokens=tokens,
            types=types,
            scores=scores,
            merges=merges,
            space_prefix=space_prefix,
            adds_bos=adds_bos,
            adds_eos=adds_eos,
            special_ids=self._special_ids(),
            chat_template=None if template is None else template.source or None,
            notes=tuple(self._notes),
        )

    def _tokens(self, *, is_byte_level: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The text and the type of each id; ids without a token are padding."""
        count = self._decoder.vocab_size
        texts = {number: text for text, number in self._model["vocab"].items()}
        texts |= {number: token["content"] for number, token in self._added.items()}
        known = set(texts.values())  # llama.cpp loads no file in which a text is there twice
        padding = (f"[PAD{number}]" for number in range(count))
        tokens = [f"[{text}]" if text in known else text for text in padding]
        types = [int(TokenType.UNUSED)] * count
        beyond = 0
        for number, text in texts.items():
            if number >= count:
                beyond += 1
                continue
            tokens[number] = text
            types[number] = int(self._type(number, text, is_byte_level))
        if beyond:
            self._notes.append(f"{beyond} tokens have no row in the embedding and are left out")
        return tuple(tokens), tuple(types)

    def _type(self, number: int, text: str, is_byte_level: bool) -> TokenType:
        added = self._added.get(number)
        if text == self._model.get("unk_token") and not is_byte_level:
            return TokenType.UNKNOWN
        if added is not None and added["special"]:
            return TokenType.CONTROL
        if added is not None and (is_byte_level or not self._is_ordinary(number, text)):
            return TokenType.USER_DEFINED
        if not is_byte_level and text in _BYTES:
            return TokenType.BYTE
        return TokenType.NORMAL

    def _is_ordinary(self, number: int, text: str) -> bool:
        """True for a token that merges make. An added one with the sign for a space is: it is
        looked for before spaces are replaced, and texts do not have the sign."""
        added = self._added.get(number)
        return added is None or (_SPACE in text and not added["special"])

    def _around(self) -> tuple[bool, bool]:
        """Whether BOS and EOS are put around a text. Refuses other tokens there."""
        tokenizer = self._tokenizer
        prefix = tokenizer.prefix_ids
        alone = tokenizer.encode(_PROBE, add_special_tokens=False)
        suffix = tokenizer.encode(_PROBE)[len(prefix) + len(alone) :]
        for where, ids, own in (
            ("before", prefix, tokenizer.bos_token_id),
            ("after", suffix, tokenizer.eos_token_id),
        ):
            if ids and ids != [own]:
                raise self._refusal(f"it puts the tokens {ids} {where} a text, and llama.cpp one")
        return bool(prefix), bool(suffix)

    def _special_ids(self) -> dict[str, int]:
        """Ids of special tokens. Raises ModelError where no token ends a text: llama.cpp would take
        one that it knows from other models."""
        tokenizer = self._tokenizer
        named = {
            name: tokenizer.token_id(tokenizer.special_tokens.get(key, ""))
            for name, key in (
                ("bos", "bos_token"),
                ("unknown", "unk_token"),
                ("padding", "pad_token"),
            )
        }
        ends = sorted(stop_token_ids(tokenizer, self._decoder.eos_token_ids))
        if not ends:
            raise self._refusal("no token ends a text: neither eos_token nor eos_token_id is there")
        own = tokenizer.eos_token_id
        named["eos"] = ends[0] if own is None else own
        others = [number for number in ends if number != named["eos"]]
        if len(others) == 1:  # of several, llama.cpp knows the usual ones by their texts
            named["eot"] = others[0]
        limit = self._decoder.vocab_size
        return {name: n for name, n in named.items() if n is not None and n < limit}

    def _refusal(self, problem: str) -> ModelError:
        return ModelError(
            f"{self._file}: {problem}; this tokenizer cannot be written as GGUF without changing "
            "how it cuts texts"
        )


def _sequence(step: Mapping[str, Any] | None, key: str) -> Sequence[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer."""
    if step is None:
        return ()
    steps: Sequence[Mapping[str, Any]] = step[key] if step["type"] == "Sequence" else (step,)
    return steps


def _replaces_spaces(step: Mapping[str, Any]) -> bool:
    return bool(step["pattern"] == {"String": " "} and step["content"] == _SPACE)
