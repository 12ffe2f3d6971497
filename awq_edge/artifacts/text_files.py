"""Text files as documents: what a calibration, an evaluation and a study read.

    a text file            one document; its kind is told by its content, not by its name
    .jsonl, .json          one document a row: its `text`, or its `messages`, a conversation
    a folder               its .txt, .md, .jsonl, .json and .ndjson files, in the order of names

What is not text (Parquet, gzip, safetensors, a table) is refused by name: tokens of its bytes would
be taken for language without a word.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from awq_edge.artifacts.input_files import open_plain, parse_json_value
from awq_edge.artifacts.paths import user_path
from awq_edge.errors import ConfigError

FOLDER_ENDINGS = (".txt", ".md", ".jsonl", ".json", ".ndjson")
_JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
_TABLE_ENDINGS = (".csv", ".tsv")
TEXT_COLUMNS = ("text", "content", "document", "sentence")
_CONVERSATION_COLUMNS = ("messages", "conversations")
# Roles of the ShareGPT form, {"from": ..., "value": ...}, in chat templates' words.
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
# A JSON array is parsed whole; a text that is read whole has to fit the memory some times over.
MAX_BYTES = 1 << 30
_MAX_ARRAY_BYTES = 1 << 28
_TABLE_ROWS = 50
_HEADER = re.compile(r"[A-Za-z_][\w.\-]*")
_UTF8 = "convert it (iconv -f {encoding} -t UTF-8)"
# First bytes of files that are no text, with what they are.
_MAGIC = (
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"\xfd7zXZ\x00", "compressed by xz"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"BZh", "compressed by bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"PK\x03\x04", "a zip archive (or an Office document, or NumPy's .npz)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"ARROW1", "an Arrow file"),
    (b"GGUF", "a GGUF model"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"Obj\x01", "an Avro file"),
    (b"SQLite format 3\x00", "an SQLite data base"),
    (b"%PDF-", "a PDF document"),
    (b"{\\rtf", "an RTF document"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"\x7fELF", "a program (ELF)"),
)
# The longer mark first: UTF-32's begins with UTF-16's.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

Message = Mapping[str, Any]


class UnsuitableFile(ConfigError):
    """A file that holds no text to read: of another kind, blank, or JSON without documents."""


@dataclass(frozen=True)
class Document:
    """One text, or one conversation. where: names it in messages."""

    where: str
    text: str | None = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class TextFile:
    """A file that was read. sha256, bytes_read: of the part that was read, from its beginning.
    whole: the part is all of it."""

    path: Path
    documents: tuple[Document, ...]
    bytes_read: int
    sha256: str
    whole: bool


@dataclass(frozen=True)
class TextFolder:
    """A folder's files. left_out: why others were not read, by name."""

    files: tuple[TextFile, ...]
    left_out: Mapping[str, str]


def read_text_file(path: Path, flag: str, limit: int = MAX_BYTES) -> TextFile:
    """Read a file's documents.

    flag: that named it, for the messages. limit: bytes that are enough; a text is cut there, JSON
    behind the last whole row.
    Raises UnsuitableFile for what is no text, blank, or JSON that holds neither texts nor
    conversations; ConfigError for what cannot be read, is in another encoding, or is broken JSON.
    """
    name = f"{flag} {path}"
    try:
        with io.BufferedReader(open_plain(user_path(path, flag), ConfigError, name=name)) as file:
            return _read(file, path, name, limit)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from None


def read_text_folder(path: Path, flag: str, limit: int) -> TextFolder:
    """Read the documents of a folder's files, `limit` bytes of them in all, a share of each.

    Raises UnsuitableFile where no file is of use, ConfigError for a file as `read_text_file`.
    """
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error.strerror}") from None
    left_out: dict[str, str] = {}
    chosen = []
    for entry in entries:
        if entry.is_dir():
            left_out[entry.name] = "a folder"
        elif entry.suffix.lower() not in FOLDER_ENDINGS:
            left_out[entry.name] = f"not {', '.join(FOLDER_ENDINGS)}"
        else:
            chosen.append(entry)
    files = []
    for entry in chosen:
        try:
            # Every file gets a share, so that the last ones are not forgotten.
            files.append(read_text_file(entry, flag, max(limit // len(chosen), 1 << 16)))
        except UnsuitableFile as error:
            left_out[entry.name] = str(error).removeprefix(f"{flag} {entry}: ").partition(";")[0]
    if not files:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "it is empty"
        raise UnsuitableFile(
            f"{flag} {path}: no text in the folder ({reasons}); give files that end with "
            f"{', '.join(FOLDER_ENDINGS)}"
        )
    return TextFolder(tuple(files), left_out)


def row_document(row: Any, where: str) -> Document:
    """A row of JSON or of a data set as a document. Raises ConfigError where it has neither a text
    nor a conversation."""
    if isinstance(row, str):
        return Document(where, text=_unicode(row, where))
    if not isinstance(row, Mapping):
        raise UnsuitableFile(f"{where}: {_json_type(row)} is no document; {_ROWS}")
    for column in TEXT_COLUMNS:
        if isinstance(row.get(column), str):
            return Document(where, text=_unicode(row[column], where))
    for column in _CONVERSATION_COLUMNS:
        if column in row:
            return Document(where, messages=_messages(row[column], f"{where}: '{column}'"))
    keys = ", ".join(f"'{key}'" for key in list(row)[:10]) or "none"
    named = next((column for column in TEXT_COLUMNS if column in row), None)
    if named is not None:
        raise ConfigError(f"{where}: '{named}' is {_json_type(row[named])}, not a string; {_ROWS}")
    raise UnsuitableFile(f"{where}: neither 'text' nor 'messages' among its keys ({keys}); {_ROWS}")


_ROWS = (
    'give rows such as {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
)


def _read(file: BinaryIO, path: Path, name: str, limit: int) -> TextFile:
    """The documents of an open file; see `read_text_file`."""
    data = file.read(limit)
    rest = file.read(1)
    _require_text(data, path, name)
    if _is_json(data, path) and not (rest and _first_line_is_a_row(data)):
        # One JSON value, which is parsed whole.
        data += rest + (file.read(_MAX_ARRAY_BYTES + 1 - len(data)) if rest else b"")
        rest = b""
        if len(data) > _MAX_ARRAY_BYTES and limit < len(data):
            raise ConfigError(
                f"{name}: a JSON value beyond {_MAX_ARRAY_BYTES >> 20} MiB; write one row a line "
                "(jq -c '.[]' FILE > FILE.jsonl)"
            )
    if rest and limit >= MAX_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_BYTES >> 30} GiB; give a part of it")
    text = _decode(data, name, is_cut=bool(rest))
    if not text.strip():
        raise UnsuitableFile(f"{name}: the file is blank; give a text")
    documents = tuple(_documents(text, data, path, name, is_cut=bool(rest)))
    return TextFile(path, documents, len(data), hashlib.sha256(data).hexdigest(), not rest)


def _documents(
    text: str, data: bytes, path: Path, name: str, *, is_cut: bool
) -> Iterator[Document]:
    """The documents of a decoded file. Blank rows are passed over."""
    if not _is_json(data, path):
        yield Document(name, text=text)
        return
    rows = list(_rows(text, name, is_cut=is_cut))
    count = 0
    for where, row in rows:
        document = row_document(row, where)
        if document.text is None or document.text.strip():
            count += 1
            yield document
    if not count:
        raise UnsuitableFile(f"{name}: none of its {len(rows)} rows has a text; give a text")


def _rows(text: str, name: str, *, is_cut: bool) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) of JSON lines, of an array of rows, or of a single row."""
    lines = text.split("\n")
    if is_cut:
        lines = lines[:-1]
    else:
        try:
            value = _parse(text, name)
        except ConfigError:
            # One value over lines is told where it breaks, lines by their number.
            if _parsed(next(line for line in lines if line.strip())) is None:
                raise
        else:
            rows = value if isinstance(value, list) else [value]
            yield from ((f"{name}: row {number}", row) for number, row in enumerate(rows, 1))
            return
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{name}: line {number}"
            yield where, _parse(line, where)


def _parse(text: str, where: str) -> Any:
    """A JSON value; NaN as pandas writes it, which other columns of a row may have."""
    return parse_json_value(text, where, ConfigError, finite=False)


def _parsed(text: str) -> Any:
    with contextlib.suppress(ConfigError):
        return _parse(text, "")
    return None


def _is_json(data: bytes, path: Path) -> bool:
    """True for a file with documents in JSON: by its name, or because its first line is a row."""
    return path.suffix.lower() in _JSON_ENDINGS or _first_line_is_a_row(data)


def _first_line_is_a_row(data: bytes) -> bool:
    """True where the first line that is not blank is a JSON object with a document in it."""
    line = data.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0]
    row = _parsed(line.decode("utf-8", "replace")) if line.startswith(b"{") else None
    return isinstance(row, dict) and not row.keys().isdisjoint(
        (*TEXT_COLUMNS, *_CONVERSATION_COLUMNS)
    )


def _require_text(data: bytes, path: Path, name: str) -> None:
    """Raise UnsuitableFile for other data than text, ConfigError for text in another encoding."""
    for mark, encoding in _OTHER_MARKS:
        if data.startswith(mark):
            raise ConfigError(
                f"{name}: the text is {encoding}, not UTF-8; {_UTF8.format(encoding=encoding)}"
            )
    kind = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    if kind is None and data[8:9] == b"{" and b"\x00" in data[:8]:
        kind = "a safetensors file"
    if kind is None and data[257:262] == b"ustar":
        kind = "a tar archive"
    if kind is None and b"\x00" in data:
        place = data.index(b"\x00")
        if _is_wide(data):
            raise ConfigError(
                f"{name}: every other byte is 0, as in UTF-16; {_UTF8.format(encoding='UTF-16LE')}"
            )
        kind = f"binary data (a zero byte at {place})"
    if kind is None and (path.suffix.lower() in _TABLE_ENDINGS or _is_table(data)):
        kind = "a table"
    if kind is not None:
        raise UnsuitableFile(
            f"{name}: is {kind}, not a text; give UTF-8 text, or .jsonl with one "
            '{"text": "..."} a line'
        )


def _is_wide(data: bytes) -> bool:
    """True where most bytes at even or at odd places are zero: UTF-16 of a Latin script."""
    beginning = data[:4096]
    zeros = (beginning[place::2].count(0) for place in (0, 1))
    return sum(count > len(beginning) // 4 for count in zeros) == 1


def _is_table(data: bytes) -> bool:
    """True where the first rows are those of a CSV file: a header of names, and as many fields in
    each row behind it."""
    lines = data[: 1 << 16].decode("utf-8", "ignore").removeprefix("\ufeff").splitlines()
    for delimiter in (",", "\t", ";"):
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if row][:_TABLE_ROWS]
        except csv.Error:
            continue
        if len(data) > 1 << 16 and len(rows) < _TABLE_ROWS:
            rows = rows[:-1]  # cut
        if len(rows) < 3 or len(rows[0]) < 2 or not all(map(_HEADER.fullmatch, rows[0])):
            continue
        if len({len(row) for row in rows}) == 1:
            return True
    return False


def _decode(data: bytes, name: str, *, is_cut: bool) -> str:
    """UTF-8 bytes as text, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        # What was cut may end inside a character.
        text = decoder.decode(data, final=not is_cut)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name}: not UTF-8 at byte {error.start}; {_UTF8.format(encoding='WINDOWS-1252')}, "
            "with the encoding that it is in"
        ) from None
    return text.removeprefix("\ufeff")


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    """A conversation in the form of chat templates. Raises ConfigError naming what is wrong."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ConfigError(f"{where}: {_json_type(value)} where messages belong; {_ROWS}")
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        if isinstance(message, Mapping) and {"from", "value"} <= set(message):
            role = message["from"]
            message = {"role": _SHAREGPT_ROLES.get(role, role), "content": message["value"]}
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigError(f"{where}: message {number} has no role; {_ROWS}")
        content = message.get("content")
        if content is not None and not isinstance(content, (str, Sequence)):
            raise ConfigError(
                f"{where}: the content of message {number} is {_json_type(content)}; {_ROWS}"
            )
        if isinstance(content, str):
            _unicode(content, f"{where}: message {number}")
        messages.append(dict(message))
    return tuple(messages)


def _unicode(text: str, where: str) -> str:
    """The text. Raises ConfigError for half a character, which JSON's \\u escapes can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where}: half of a surrogate pair at character {error.start}; write the character "
            "itself, or both halves"
        ) from None
    return text


def _json_type(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return "an empty array" if not value else "an array"
    return names.get(type(value), "an object")
