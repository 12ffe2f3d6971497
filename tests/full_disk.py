"""A disk that is full from a chosen write on."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest


class FullDisk:
    """Lets every write to a file below a folder fail from the n-th on. What a file system does late
    counts as a write: a new folder, and a file that is flushed to the disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.failed = False
        self._folder = str(folder)
        self._open = io.open
        monkeypatch.setattr(io, "open", self.open)
        monkeypatch.setattr(builtins, "open", self.open)
        self._mkdir, self._fsync = os.mkdir, os.fsync
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def open(self, file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        opened = self._open(file, mode, *arguments, **keywords)
        if mode[0] in "wxa" and str(file).startswith(self._folder):
            return _Counted(opened, self)
        return opened

    def mkdir(self, path: Any, *arguments: Any, **keywords: Any) -> None:
        if str(path).startswith(self._folder):
            self.spend()
        self._mkdir(path, *arguments, **keywords)

    def fsync(self, descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(self._folder):
            self.spend()
        self._fsync(descriptor)

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed = True
            raise OSError(errno.ENOSPC, "No space left on device")


class _Counted:
    """A file whose writes are counted; the rest is the file's own."""

    def __init__(self, file: Any, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        self._disk.spend()
        return self._file.write(data)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
