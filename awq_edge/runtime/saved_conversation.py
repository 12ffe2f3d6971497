"""A conversation as a JSON file: written by `/save` of `awq-edge chat`, read by `/load`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import model_validator

from awq_edge._version import __version__
from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.outputs import read_own
from awq_edge.artifacts.schema import Manifest, Record, read_manifest
from awq_edge.errors import ConfigError

# A context of 128,000 tokens is about half a megabyte of text.
_LARGEST_FILE = 16_000_000
_FORMAT = "awq-edge-conversation"


class SavedMessage(Record, strict=True):
    """One message, as chat templates see it. reasoning_content: the thoughts before an answer."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning_content: str | None = None


class SavedConversation(Manifest):
    """A conversation between a user and a model.

    model_name: of the model that answered.
    dropped_turns: turns missing from the file, in versions that forgot what the context had no room
        for.
    messages: a system prompt or none, then questions and answers alternately.
    """

    noun: ClassVar[str] = "a saved conversation"
    remedy: ClassVar[str] = "/save makes one, in the version that is to read it"
    version_key: ClassVar[str] = "schema_version"

    format: Literal["awq-edge-conversation"] = "awq-edge-conversation"
    schema_version: Literal[1] = 1
    awq_edge_version: str = __version__
    model_name: str
    dropped_turns: int = 0
    messages: tuple[SavedMessage, ...]

    @model_validator(mode="after")
    def _turns(self) -> SavedConversation:
        roles = [message.role for message in self.messages]
        speakers = roles[1:] if roles[:1] == ["system"] else roles
        if speakers != ["user", "assistant"] * (len(speakers) // 2):
            raise ValueError(
                "messages must be a system prompt or none, then user and assistant in turns; they "
                f"are {', '.join(roles) or 'none'}"
            )
        return self


def save(path: Path, conversation: SavedConversation, *, replace: bool = False) -> None:
    """Write a conversation whole or not at all, readable for its owner alone.

    A file that is there is replaced only if it is a conversation that this one continues, or with
    `replace` any conversation. Raises ConfigError.
    """
    try:
        if path.exists():
            _require_replaceable(path, conversation, replace)
        with atomic_file(path, mode=0o600) as work:
            text = conversation.model_dump_json(indent=2, exclude_none=True)
            work.write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be written: {reason}") from None


def read(path: Path) -> SavedConversation:
    """The conversation of a file. Raises ConfigError for one that cannot be read, or of no known
    version."""
    return read_manifest(SavedConversation, path, limit=_LARGEST_FILE, error=ConfigError)


def _require_replaceable(path: Path, conversation: SavedConversation, replace: bool) -> None:
    """Raise ConfigError where a message of the file would be lost."""
    if read_own(path, _FORMAT) is None:
        raise ConfigError(f"{path} is there and is no saved conversation; choose another name")
    if replace:
        return
    try:
        old = _turns_of(read(path))
    except ConfigError as error:
        raise ConfigError(f"{error}; choose another name, or /save! replaces it") from None
    if _turns_of(conversation)[: len(old)] != old:
        count = len(old) // 2
        raise ConfigError(
            f"{path} has a conversation of {count} turn{'' if count == 1 else 's'} that is not the "
            "beginning of this one; choose another name, or /save! replaces it"
        )


def _turns_of(conversation: SavedConversation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in conversation.messages if m.role != "system"]
