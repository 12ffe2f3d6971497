"""Small tokenizers of the kinds that GGUF has, trained on a text with digits, cases and signs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as pre

from awq_edge.exporter.gguf.pre_tokenizers import names

TEXTS = [
    "Once upon a time, in 1984, there WAS a little girl; she'd 3 boats and 12345 fish!  \n\n",
    "def f(x):\n    return x ** 2 + 10.5  # He'll don't DON'T I'm they've\n\t\tend\r\n",
    "Größe, naïve café, Ελλάδα и Москва, 東京タワー 한국어, emoji 🙂🙃, ١٢٣ and ½.\n",
    "HTTPServer camelCase snake_case CONSTANT_VALUE x=1;y=2 /usr/bin --flag='a b'   c\n",
    # "the" can be made in two ways of tokens that are there.
    "this that thus thin thorn with both path he hen she her shed heal the then there\n",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]
SIZE = 700
SPACE = "\u2581"


def save_byte_level(directory: Path, name: str) -> Path:
    """A byte-level tokenizer whose pre-tokenizer llama.cpp calls `name`."""
    steps, ignore_merges = names()[name]
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made = [_STEPS[step]() if step in _STEPS else _split(step) for step in steps]
    backend.pre_tokenizer = made[0] if len(made) == 1 else pre.Sequence(made)
    backend.decoder = decoders.ByteLevel()
    _train(backend, pre.ByteLevel.alphabet())
    return _save(backend, directory)


def save_sentencepiece(directory: Path, *, metaspace: bool = False, prefix: bool = True) -> Path:
    """A tokenizer as converters make of SentencePiece's BPE files: bytes for what is unknown."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Replace(" ", SPACE)]
    if prefix:
        steps.insert(0, normalizers.Prepend(SPACE))
    if metaspace:
        scheme = "first" if prefix else "never"
        backend.pre_tokenizer = pre.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    else:
        backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(),
                                         decoders.Fuse()])  # fmt: skip
    _train(backend, [], [f"<0x{byte:02X}>" for byte in range(256)])
    stored = json.loads(backend.to_str())
    _as_converted(stored["model"])
    backend = Tokenizer.from_str(json.dumps(stored))
    return _save(backend, directory)


def _as_converted(model: dict[str, Any]) -> None:
    """Merges in the order in which converters write SentencePiece's: by the token that they make,
    every pair that makes it."""
    vocab = model["vocab"]
    made = dict.fromkeys(left + right for left, right in model["merges"])
    model["merges"] = [
        [text[:end], text[end:]]
        for text in made
        for end in range(1, len(text))
        if text[:end] in vocab and text[end:] in vocab
    ]


def _train(backend: Tokenizer, alphabet: list[str], more: list[str] | None = None) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[*SPECIAL, *(more or [])],
        initial_alphabet=alphabet,
        show_progress=False,
        max_token_length=12,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)


def _save(backend: Tokenizer, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    stored = json.loads(backend.to_str())
    # Those of bytes are no added tokens, which texts are searched for.
    stored["added_tokens"] = [t for t in stored["added_tokens"] if t["content"] in SPECIAL]
    backend = Tokenizer.from_str(json.dumps(stored))
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def _split(expression: str) -> pre.PreTokenizer:
    return pre.Split(Regex(expression), "isolated")


_STEPS = {
    "bytes": lambda: pre.ByteLevel(add_prefix_space=False, use_regex=False),
    "words": lambda: pre.ByteLevel(add_prefix_space=False, use_regex=True),
    "digits": lambda: pre.Digits(individual_digits=True),
}
