"""A conversation as a JSON file: what `/save` of `awq-edge chat` writes and `/load` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from awq_edge._version import __version__
from awq_edge.artifacts import atomic_file
from awq_edge.errors import ConfigError
from awq_edge.validation import describe_errors

# A context of 128,000 tokens is about half a megabyte of text.
_LARGEST_FILE = 16_000_000


class SavedMessage(BaseModel):
    """One message, as chat templates see it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class SavedConversation(BaseModel):
    """model_name: whose answers these are. dropped_turns: that were forgotten, as the context was
    full. messages: a system prompt or none, then questions and answers in turns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["awq-edge-conversation"] = "awq-edge-conversation"
    schema_version: Literal[1] = 1
    awq_edge_version: str = __version__
    model_name: str
    dropped_turns: int = 0
    messages: tuple[SavedMessage, ...]

    @model_validator(mode="after")
    def _turns(self) -> SavedConversation:
        roles = [message.role for message in self.messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if turns != ["user", "assistant"] * (len(turns) // 2):
            raise ValueError(
                "messages must be a system prompt or none, then user and assistant in turns; they "
                f"are {', '.join(roles) or 'none'}"
            )
        return self


def save(path: Path, conversation: SavedConversation) -> None:
    """Write it whole or not at all, readable for its owner alone.

    A file that is there is replaced only if it is a conversation. Raises ConfigError.
    """
    try:
        if path.exists() and not _is_conversation(path):
            raise ConfigError(f"{path} is there and is no saved conversation; choose another name")
        with atomic_file(path) as work:
            work.touch(mode=0o600)
            work.write_text(conversation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be written: {reason}") from None


def read(path: Path) -> SavedConversation:
    """Raises ConfigError for what cannot be read, or is not a conversation of this version."""
    text = _text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != "awq-edge-conversation":
        raise ConfigError(f"{path} is no saved conversation; /save makes one")
    version = data.get("schema_version")
    if version != 1:
        raise ConfigError(
            f"{path} has schema_version {version}, this awq-edge ({__version__}) reads 1; use the "
            f"version that wrote it ({data.get('awq_edge_version')})"
        )
    try:
        return SavedConversation.model_validate_json(text)
    except ValidationError as error:
        keys = list(SavedConversation.model_fields)
        raise ConfigError(f"{path}: {describe_errors(error, SavedConversation, keys)}") from None


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            # A pipe would be waited for, for ever.
            raise ConfigError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{path} has more than {_LARGEST_FILE} bytes: no saved conversation")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8") from None
    except ValueError as error:  # a null byte in the name
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _is_conversation(path: Path) -> bool:
    try:
        return bool(json.loads(_text(path)).get("format") == "awq-edge-conversation")
    except (ConfigError, ValueError, RecursionError, AttributeError):
        return False
