"""The text that is scored: read once, described in the report."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from awq_edge.errors import ConfigError


class TextInfo(BaseModel):
    """The text that was scored. bytes: of the file. tokens: of the whole file, special tokens
    included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Text:
    """A UTF-8 text file. content: its bytes. words: the text."""

    path: Path
    content: bytes
    words: str

    def info(self, tokens: int) -> TextInfo:
        """The text as a report names it. tokens: of the whole file."""
        return TextInfo(
            path=str(self.path),
            sha256=hashlib.sha256(self.content).hexdigest(),
            bytes=len(self.content),
            tokens=tokens,
        )


def read_text(path: Path, flag: str = "--text") -> Text:
    """Read a UTF-8 file. flag: that named it, for the messages.

    Raises ConfigError when it is missing, not UTF-8 or empty.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror}") from None
    try:
        words = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{flag} {path}: not UTF-8 at byte {error.start}; convert it (iconv -t UTF-8)"
        ) from None
    if not words.strip():
        raise ConfigError(f"{flag} {path}: the file is empty; give a text to score")
    return Text(path, content, words)
