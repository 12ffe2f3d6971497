"""The scripts of a model's own text: documents, and conversations in which it plays both sides.

document       separator, text, separator, text, ...
conversation   the template up to the user's words, question, the template between the two,
               answer, the template up to the next question, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.archs import Decoder
from awq_edge.runtime.chat_template import load_chat_template
from awq_edge.runtime.tokenizer import Tokenizer, stop_token_ids

# Tokens that stand between the documents of a training text where the tokenizer puts none before
# a text: chat models often name the ends of turns as BOS and EOS instead.
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
# Every fourth sample of a model with a chat template is a conversation.
_CONVERSATION_STRIDE = 4
# Tokens of a document and of a turn, at least: a model that knows nothing but ends is heard too.
_DOCUMENT_TOKENS, _TURN_TOKENS = 16, 4


@dataclass(frozen=True)
class Script:
    """What one sequence holds beside drawn tokens.

    opening: ids that it begins with, at least one. breaks: ids in the place of an end token: at the
    first the first, then the next, over again. shortest: tokens that are drawn before an end token
    may be.
    """

    opening: tuple[int, ...]
    breaks: tuple[tuple[int, ...], ...]
    shortest: int
    is_conversation: bool = False


def own_scripts(
    tokenizer: Tokenizer, decoder: Decoder, *, samples: int, seed: int
) -> tuple[Script, ...]:
    """The scripts of so many samples. seed: draws the first tokens where the tokenizer has no
    token that a document could begin with."""
    ends = end_ids(tokenizer, decoder)
    conversation = _conversation(tokenizer)
    separator = _separator(tokenizer, decoder)
    ordinary = np.setdiff1d(np.arange(decoder.vocab_size), list(ends))
    random = np.random.default_rng(seed)
    scripts = []
    for number in range(samples):
        if conversation is not None and number % _CONVERSATION_STRIDE == _CONVERSATION_STRIDE - 1:
            scripts.append(conversation)
            continue
        begin = separator or (int(random.choice(ordinary)),)
        scripts.append(Script(begin, (begin,), _DOCUMENT_TOKENS))
    return tuple(scripts)


def end_ids(tokenizer: Tokenizer, decoder: Decoder) -> frozenset[int]:
    """Ids that end a document or a turn: all that stand for no text, those of images included."""
    images = decoder.images
    marks = () if images is None else (images.image_id, *images.before, *images.after)
    return tokenizer.special_ids() | stop_token_ids(tokenizer, (*decoder.eos_token_ids, *marks))


def _separator(tokenizer: Tokenizer, decoder: Decoder) -> tuple[int, ...]:
    """The ids before a document: those that the tokenizer puts before a text, else a token that is
    known for it, else BOS or EOS; none where there is none."""
    if prefix := tokenizer.prefix_ids:
        return tuple(prefix)
    known = (tokenizer.token_id(text) for text in _SEPARATORS)
    named = (decoder.bos_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    for token in (*known, *named, *decoder.eos_token_ids):
        if token is not None and 0 <= token < decoder.vocab_size:
            return (token,)
    return ()


def _conversation(tokenizer: Tokenizer) -> Script | None:
    """The script of a conversation; None without a chat template that is of use here."""
    template = load_chat_template(tokenizer.directory, tokenizer.special_tokens)
    try:
        frames = None if template is None else template.frames
    except (ConfigError, ModelError):
        return None  # a broken template is no obstacle to quantizing a model
    if frames is None:
        return None
    before, between, behind = (tokenizer.encode(f, add_special_tokens=False) for f in frames)
    prefix = tokenizer.prefix_ids
    if before[: len(prefix)] != prefix:
        before = prefix + before
    if not (before and between and behind):
        return None
    breaks = (tuple(between), tuple(behind))
    return Script(tuple(before), breaks, _TURN_TOKENS, is_conversation=True)


def conversations(scripts: Sequence[Script]) -> int:
    """How many of the scripts are conversations."""
    return sum(script.is_conversation for script in scripts)
