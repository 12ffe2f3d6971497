"""Documents as token ids, with the prefix that the tokenizer adds to a text held separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from awq_edge.artifacts.text_files import Document
from awq_edge.errors import ConfigError
from awq_edge.runtime.chat_template import ChatTemplate, load_chat_template
from awq_edge.runtime.tokenizer import Tokenizer

_BETWEEN_TEXTS = "\n\n"


@dataclass(frozen=True)
class TokenizedText:
    """A text's ids."""

    prefix: tuple[int, ...]  # ids that the tokenizer adds before a text, most often one BOS or none
    ids: tuple[int, ...]  # of the text, without the prefix

    def first(self, tokens: int | None) -> TokenizedText:
        """The first tokens of the text; None for all."""
        return TokenizedText(self.prefix, self.ids[:tokens])


def tokenize(documents: Sequence[Document], tokenizer: Tokenizer) -> TokenizedText:
    """Documents behind each other: texts with a blank line between them, conversations as the chat
    template writes them.

    Raises ConfigError for a conversation where the model has no chat template, or its template
    refuses it.
    """
    prefix = tokenizer.prefix_ids
    ids: list[int] = []
    texts: list[str] = []
    template = _template(documents, tokenizer)

    def add(text: str) -> None:
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        # A text that was written with it: once is enough.
        ids.extend(
            token_ids[len(prefix) :] if prefix and token_ids[: len(prefix)] == prefix else token_ids
        )

    for document in documents:
        if document.text is not None:
            texts.append(document.text)
            continue
        if texts:
            add(_BETWEEN_TEXTS.join(texts))
            texts.clear()
        assert template is not None
        try:
            add(template.render(document.messages, add_generation_prompt=False))
        except ConfigError as error:
            raise ConfigError(f"{document.where}: {error}") from None
    if texts:
        add(_BETWEEN_TEXTS.join(texts))
    return TokenizedText(tuple(prefix), tuple(ids))


def _template(documents: Sequence[Document], tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template, where a conversation needs it; else None."""
    conversation = next((document for document in documents if document.messages), None)
    if conversation is None:
        return None
    template = load_chat_template(tokenizer.directory, tokenizer.special_tokens)
    if template is None:
        raise ConfigError(
            f"{conversation.where}: a conversation, and {tokenizer.directory} has no chat template "
            'to write it with; give rows with a "text"'
        )
    return template
