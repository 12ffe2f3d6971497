"""Files that this project writes and reads back: one base class, one reader, one version check."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from awq_edge._version import __version__
from awq_edge.artifacts.input_files import (
    MAX_JSON_BYTES,
    decode,
    parse_json,
    read_bytes,
    show,
    show_path,
    show_text,
)
from awq_edge.errors import ArtifactError, AwqEdgeError
from awq_edge.terminal_text import one_line

_LONGEST_REASON = 200  # characters


class Record(BaseModel):
    """Part of a file: its values stay as they are, and a key that it does not have is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Manifest(Record):
    """A whole file, which begins with the name and the version of its format.

    noun: the file in messages. remedy: how to get one that can be read. version_key: its key of the
    version.
    """

    noun: ClassVar[str] = "a report of this version"
    remedy: ClassVar[str] = "make it again with this version"
    version_key: ClassVar[str] = "format_version"


ManifestT = TypeVar("ManifestT", bound=Manifest)


def read_manifest(
    model: type[ManifestT],
    path: Path,
    *,
    remedy: str | None = None,
    limit: int = MAX_JSON_BYTES,
    error: type[AwqEdgeError] = ArtifactError,
) -> ManifestT:
    """The manifest in a file. Raises `error` as `parse_manifest`, or where it cannot be read."""
    data = read_bytes(path, limit=limit, error=error)
    return parse_manifest(model, data, show_path(path), remedy=remedy, error=error)


def parse_manifest(
    model: type[ManifestT],
    data: bytes | str,
    source: str,
    *,
    remedy: str | None = None,
    error: type[AwqEdgeError] = ArtifactError,
) -> ManifestT:
    """A manifest from JSON, types as written: true is no integer, "1" no number.

    source: the file, for messages. remedy: in the place of the model's. Raises `error` for another
    format or version, and with the key that is wrong.
    """
    remedy = remedy or model.remedy
    try:
        text = data if isinstance(data, str) else decode(data, source, error)
        values = parse_json(text, source, error)
    except error as problem:
        raise error(f"{problem}; {remedy}") from None
    ours, version = (model.model_fields[key].default for key in ("format", model.version_key))
    if values.get("format", ours) != ours:
        raise error(
            f"{source} is not {model.noun} (format: {show(values['format'])}, not '{ours}'); "
            f"{remedy}"
        )
    if values.get(model.version_key, version) != version:
        raise error(
            f"{source} has {model.version_key} {show(values[model.version_key])}, this awq-edge "
            f"({__version__}) reads {version}; {remedy}"
        )
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(show_text(str(part)) for part in first["loc"]) or "top level"
        reason = one_line(first["msg"].removeprefix("Value error, ")[:_LONGEST_REASON])
        raise error(f"{source} is not {model.noun} ({place}: {reason}); {remedy}") from None
