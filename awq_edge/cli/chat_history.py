"""Messages typed in earlier chats, for the arrow keys: one JSON string a line."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

_ENTRIES = 1000  # that are called back; older ones are dropped
_LONGEST = 100_000  # characters of an entry


def history_file() -> Path | None:
    """$AWQ_EDGE_HISTORY, or a file in the user's state folder; None where the variable is empty."""
    explicit = os.environ.get("AWQ_EDGE_HISTORY")
    if explicit is not None:
        return Path(explicit) if explicit else None
    state = os.environ.get("XDG_STATE_HOME")
    with contextlib.suppress(RuntimeError):  # no home
        folder = Path(state) if state else Path.home() / ".local" / "state"
        return folder / "awq-edge" / "chat_history"
    return None


class History:
    """The entries of a file, which is made with the first entry, readable for its owner alone.

    A file that cannot be read or written counts as empty: no entry is worth an error.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def entries(self) -> list[str]:
        """The oldest first; lines that are no JSON strings are left out."""
        kept: list[str] = []
        if self._path is None or not self._path.is_file():
            return kept
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, str) and _can_be_called_back(entry):
                        kept.append(entry)
        if len(kept) > 2 * _ENTRIES:
            self._shorten(kept[-_ENTRIES:])
        return kept[-_ENTRIES:]

    def add(self, entry: str) -> bool:
        """Append an entry, at once: two chats may write into one file. True if readline can recall
        it."""
        if not _can_be_called_back(entry):
            return False
        if self._path is None:
            return True
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, (json.dumps(entry) + "\n").encode("ascii"))
            finally:
                os.close(descriptor)
        return True

    def _shorten(self, entries: list[str]) -> None:
        from awq_edge.artifacts.directories import atomic_file

        assert self._path is not None
        with contextlib.suppress(OSError), atomic_file(self._path) as work:
            work.touch(mode=0o600)
            work.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="ascii")


def _can_be_called_back(entry: str) -> bool:
    """True if readline takes the entry, and a person would want it."""
    return 0 < len(entry) <= _LONGEST and "\0" not in entry and _encodes(entry)


def _encodes(entry: str) -> bool:
    try:
        entry.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
