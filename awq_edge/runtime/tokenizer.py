"""Text to token ids and back, with `tokenizers` and the files of a bundle; no transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.input_files import read_json, read_text, show_path, show_text
from awq_edge.errors import ConfigError, ModelError
from awq_edge.runtime.tokenizer_limits import GuardedTokenizer, is_plain

# A decoder's character for bytes that are not (yet) valid UTF-8.
_REPLACEMENT = "\ufffd"
# Tokens of the prompt that the decoder of a continuation sees before it: enough that a decoder
# which strips the space of a text's first word does not strip the continuation's.
_CONTEXT_TOKENS = 6
_PROBE = "a"  # a text that shows what is put before one
_UTF8_BYTES = 4  # of one character, at most
# Tokens that may wait for the end of a character. A model of broken output would else be silent,
# and ever slower, as the whole wait is decoded again with every token.
_HELD_TOKENS = 16


# 256,000 tokens with their merges take 35 MB.
_MAX_BYTES = 300_000_000
_SPECIAL_NAMES = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


class Tokenizer:
    """tokenizer.json with the special tokens that tokenizer_config.json names."""

    def __init__(self, directory: Path) -> None:
        """Read the tokenizer files of a bundle or a model directory.

        Raises ModelError when tokenizer.json is missing or damaged.
        """
        path = directory / "tokenizer.json"
        if not path.exists():
            raise ModelError(
                f"{directory} has no tokenizer.json; make one where transformers is, with `python "
                f'-c "from transformers import AutoTokenizer; d = {str(directory)!r}; '
                'AutoTokenizer.from_pretrained(d).save_pretrained(d)"`, and run this again'
            )
        self._backend = _read_backend(path)
        self._backend.no_truncation()
        self._backend.no_padding()
        self.directory = directory
        self.config = _optional_json(directory / "tokenizer_config.json")
        self.special_tokens = _special_tokens(directory, self.config)
        _add_tokens(self._backend, directory, self.config, self.special_tokens)
        self._guarded: GuardedTokenizer | None = None
        if not is_plain(self._backend):
            self._guarded = GuardedTokenizer(self.to_json())
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        # The tokenizer.json of some older models has no rule for the BOS that this key asks for.
        keys = ConfigKeys(self.config, str(directory / "tokenizer_config.json"))
        self._ensure_bos = keys.flag("add_bos_token", nullable=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def vocabulary(self) -> dict[str, int]:
        """Every token's text with its id, added tokens included."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def to_json(self) -> str:
        """The text of tokenizer.json as it is used: without truncation and padding."""
        return str(self._backend.to_str())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`;

        add_special_tokens: with those that the model expects around a text.

        A text that a chat template made has its special tokens already: its BOS is not doubled.
        Raises ConfigError for a text that is no Unicode (Python's form of undecodable arguments).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text has a byte that is not UTF-8 at character {error.start}; convert it "
                "(iconv -t UTF-8)"
            ) from None
        ids = self._ids(text, add_special_tokens)
        bos = self.bos_token_id
        if add_special_tokens and self._ensure_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        written = self.special_tokens.get("bos_token")
        if add_special_tokens and ids[:2] == [bos, bos] and written and text.startswith(written):
            twice = len(written)
            if not text.startswith(written, twice):  # unless it is there twice
                del ids[0]
        return ids

    @property
    def prefix_ids(self) -> list[int]:
        """Token ids that the tokenizer puts before a text: most often one BOS, or none."""
        alone = self.encode(_PROBE, add_special_tokens=False)
        whole = self.encode(_PROBE)
        for count in range(len(whole) - len(alone) + 1):
            if whole[count : count + len(alone)] == alone:
                return whole[:count]
        return []

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids that are in no vocabulary give nothing."""
        if self._guarded is not None:
            return self._guarded.decode(ids, skip_special_tokens)
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_id(self, token: str) -> int | None:
        """The id of one token by its text, or None."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text: beginning and end of a text, of a turn, padding."""
        added = self._backend.get_added_tokens_decoder()
        named = (self.token_id(token) for token in self.special_tokens.values())
        return frozenset(
            [number for number, token in added.items() if token.special]
            + [number for number in named if number is not None]
        )

    def special_texts(self) -> dict[int, str]:
        """The names of the special tokens, which `decode` leaves out, by id."""
        added = self._backend.get_added_tokens_decoder()
        return {number: token.content for number, token in added.items() if token.special}

    def leading_added_token(self, text: str) -> int | None:
        """The id of the added token that a text begins with, or None."""
        added = self._backend.get_added_tokens_decoder()
        matching = {
            t.content: i for i, t in added.items() if t.content and text.startswith(t.content)
        }
        return matching[max(matching, key=len)] if matching else None

    def added_texts(self) -> frozenset[str]:
        """The texts of all added tokens, special or not."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token.content for token in added.values())

    def starts_with_special_token(self, text: str) -> bool:
        """True if the tokenizer splits `text` after an added token at its very beginning."""
        tokens = self._backend.get_added_tokens_decoder().values()
        return any(text.startswith(token.content) for token in tokens)

    def stream(self, before: Sequence[int] = ()) -> TokenStream:
        """A decoder of the ids that follow `before`, one by one."""
        return TokenStream(self, before)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._guarded is not None:
            return self._guarded.encode(text, add_special_tokens)
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)


class TokenStream:
    """Incremental detokenization: the pieces join to the text that decoding everything at once
    gives.

    A piece is held back while it ends inside a UTF-8 character, up to a limit. Each step decodes a
    window that begins with text already given out, because a token's text depends on its neighbours
    (the space before a word, byte tokens). Bytes that are no UTF-8 at all come out as U+FFFD, not
    always as many as when everything is decoded at once.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window, self._shown = _tail(tokenizer, before)
        self._known = len(self._window)  # tokens of the window whose text was given out

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; often one word, at times nothing."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        held = len(self._window) - self._known
        if text.endswith(_REPLACEMENT) and held >= _HELD_TOKENS:
            piece = text[len(self._shown) :]
            self._window, self._shown = _tail(self._tokenizer, self._window)
            self._known = len(self._window)
            return piece
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._shown):
            return ""
        piece = text[len(self._shown) :]
        # The next window begins with the text just given out, unless that has no text alone:
        # special tokens are not shown, and the first word of a window may lose its space.
        following = self._window[self._known :]
        shown = self._tokenizer.decode(following)
        if shown and not shown.startswith(_REPLACEMENT):
            self._window, self._shown = following, shown
        else:
            self._shown = text
        self._known = len(self._window)
        return piece

    def flush(self) -> str:
        """The text held back, at the end of the stream; invalid bytes as U+FFFD."""
        text = self._tokenizer.decode(self._window)
        piece = text[len(self._shown) :]
        self._shown, self._known = text, len(self._window)
        return piece


def _tail(tokenizer: Tokenizer, before: Sequence[int]) -> tuple[list[int], str]:
    """The last few tokens of `before`, from the beginning of a character, and their text."""
    for count in range(_CONTEXT_TOKENS, _CONTEXT_TOKENS + _UTF8_BYTES):
        window = list(before[-count:])
        shown = tokenizer.decode(window)
        if _REPLACEMENT not in shown:
            return window, shown
    return window, shown  # a prompt that holds U+FFFD itself


def stop_token_ids(tokenizer: Tokenizer, manifest_ids: Iterable[int]) -> frozenset[int]:
    """Ids that end an answer: the manifest's, generation_config.json's and the tokenizer's.

    Chat models often end a turn with a token that only one of the three names.
    """
    path = tokenizer.directory / "generation_config.json"
    ids = {*manifest_ids, *ConfigKeys(_optional_json(path), str(path)).token_ids("eos_token_id")}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def _read_backend(path: Path) -> Backend:
    """The tokenizer of a tokenizer.json. Raises ModelError when the file holds none."""
    text = read_text(path, limit=_MAX_BYTES)
    try:
        return Backend.from_str(text)
    except BaseException as error:
        # The library raises plain Exception, and where it panics what is no Exception at all.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        problem = show_text(str(error))
    raise ModelError(f"{show_path(path)} is not a valid tokenizer.json: {problem}")


def _optional_json(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.exists() else {}


def _add_tokens(
    backend: Backend,
    directory: Path,
    config: Mapping[str, Any],
    special_tokens: Mapping[str, str],
) -> None:
    """Add tokens that tokenizer_config.json, added_tokens.json or the named special tokens have and
    tokenizer.json lacks, in the order of their ids, as transformers adds them.

    Raises ModelError where a token gets another id than its file says.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    special = set(special_tokens.values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more: Any = config.get(key)
        values = list(more.values()) if isinstance(more, dict) else more
        for value in values if isinstance(values, list) else ():
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                special.add(text)
    wanted: dict[str, tuple[int, AddedToken]] = {}
    decoder = config.get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and number.isdecimal():
            flags = {name: entry.get(name) is True for name in ("lstrip", "rstrip", "single_word")}
            is_special = entry.get("special") is True
            normalized = entry.get("normalized", not is_special) is True
            token = AddedToken(entry["content"], special=is_special, normalized=normalized, **flags)
            wanted[entry["content"]] = (int(number), token)
    for text, number in _optional_json(directory / "added_tokens.json").items():
        if type(number) is int and text not in wanted:
            token = AddedToken(text, special=text in special, normalized=text not in special)
            wanted[text] = (number, token)
    for text, (number, token) in sorted(wanted.items(), key=lambda item: item[1][0]):
        if text in known or not text:
            continue
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        got = backend.token_to_id(text)
        if got != number:
            raise ModelError(
                f"{directory}: the added token {text[:40]!r} has the id {number} by "
                f"tokenizer_config.json or added_tokens.json, and {got} behind the tokens of "
                "tokenizer.json; the files do not belong together: save the tokenizer again with "
                "transformers' AutoTokenizer.save_pretrained"
            )
    # A special token that is an ordinary entry of the vocabulary would be cut, and shown.
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    named = [t for t in sorted(special - added) if t and backend.token_to_id(t) is not None]
    # A turn's end may stand in no vocabulary at all; it gets the next id.
    ends = [special_tokens.get(name, "") for name in ("bos_token", "eos_token")]
    named += [t for t in ends if t and backend.token_to_id(t) is None]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in named])


def _special_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of bos_token, eos_token and the like; a token is a string or {"content": string}."""
    special_tokens: dict[str, str] = {}
    map_file, config_file = directory / "special_tokens_map.json", "tokenizer_config.json"
    for keys in (
        ConfigKeys(_optional_json(map_file), str(map_file)),
        ConfigKeys(config, str(directory / config_file)),
    ):
        for name in _SPECIAL_NAMES:
            if isinstance(keys.values.get(name), dict):
                token = keys.table(name)
                assert token is not None
                special_tokens[name] = token.text("content")
            elif name in keys:
                special_tokens[name] = keys.text(name)
    return special_tokens
