"""The text that is scored: read once, described in the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from awq_edge.artifacts.schema import Record
from awq_edge.artifacts.text_files import TextFile, read_text_file
from awq_edge.runtime.text_tokens import TokenizedText, tokenize
from awq_edge.runtime.tokenizer import Tokenizer


class TextInfo(Record):
    """The text that was scored."""

    path: str
    sha256: str
    bytes: int  # of the file
    documents: int = 1  # their number
    tokens: int  # of the whole text, without `prefix`
    prefix: tuple[int, ...] = ()  # token ids before each window, most often BOS or none


@dataclass(frozen=True)
class Text:
    """A file of text, or of documents in JSON; see `awq_edge.artifacts.text_files`."""

    file: TextFile

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole file."""
        return self.file.sha256

    def tokenized(self, tokenizer: Tokenizer) -> TokenizedText:
        """The text's token ids. Raises ConfigError for a conversation that no template can
        write."""
        return tokenize(self.file.documents, tokenizer)

    def info(self, text: TokenizedText) -> TextInfo:
        """The text as a report names it. text: the whole one."""
        return TextInfo(
            path=str(self.file.path),
            sha256=self.sha256,
            bytes=self.file.bytes_read,
            documents=len(self.file.documents),
            tokens=len(text.ids),
            prefix=text.prefix,
        )


def read_text(path: Path, flag: str = "--text") -> Text:
    """Read a file of text.

    flag: its flag, for the messages.
    Raises ConfigError when the file is missing, no text, not UTF-8 or blank.
    """
    return Text(read_text_file(path, flag))
