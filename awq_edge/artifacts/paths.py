"""Paths that people and files name: home folders, faults of the system, names inside a folder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from awq_edge.errors import AwqEdgeError, ConfigError, ResourceError
from awq_edge.process.memory_errors import memory_error

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_THREAD = "can't start new thread"  # CPython's words, in an error of no class of its own
# What a machine or its owner set up, and a way out.
_REMEDIES = {
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.ENOENT: "give a path that exists",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "a link leads back to itself; name its target",
    errno.EBUSY: "something else uses it; wait, or name another place",
    errno.EIO: "the disk failed; look at the system's log (`dmesg`)",
    errno.ESTALE: "the network folder was changed; mount it again",
    errno.ENODEV: "the device is gone; name another place",
    errno.ENXIO: "the device is gone; name another place",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "the system has too many open files; close programs",
    errno.EFBIG: "the file system or `ulimit -f` does not allow such files",
    errno.ENOLCK: "the file system has no locks; name another place",
    errno.ENOEXEC: "it is no program of this machine; install it again",
    errno.EXDEV: "it lies on another file system; name another place",
}


def user_path(value: str | Path, what: str = "path") -> Path:
    """`value` with ~ and ~NAME in full. what: the flag or argument, for the message.

    Raises ConfigError where there is no such user, or the text cannot be a path.
    """
    if "\0" in str(value):
        raise ConfigError(f"{what} {str(value)!r}: a path has no null bytes; give another")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{what} {value}: there is no home folder of that user; give the path itself (./~name "
            "for a name that begins so)"
        ) from None


def is_disk_full(error: BaseException) -> bool:
    """True where an exception says that there is no space, or no quota, left on a disk."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def system_fault(error: BaseException) -> AwqEdgeError | None:
    """An error of the machine or its set-up in one line, the file named; None for others."""
    if isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        return ResourceError(f"{error}: the system's limit of processes or of memory is reached; "
                             "close programs, or raise `ulimit -u`")  # fmt: skip
    if not isinstance(error, OSError):
        return memory_error(error)
    name = error.filename2 or error.filename
    place = "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
    if error.errno in _DISK_FULL:
        return ResourceError(f"{place}{error.strerror}; free some space or name another place")
    if not place or not error.strerror:
        return None
    remedy = _REMEDIES.get(error.errno or 0, "check the path and its permissions")
    return ConfigError(f"{place}{error.strerror}; {remedy}")


@contextlib.contextmanager
def system_faults() -> Iterator[None]:
    """Inside, an OSError that is the machine's (`system_fault`) becomes an AwqEdgeError."""
    try:
        yield
    except OSError as error:
        fault = system_fault(error)
        if fault is None:
            raise
        raise fault from error


def inner_path(name: str) -> str:
    """`name` if it is a relative path that goes down alone. Raises ValueError for others.

    Such a path may still lead out through a link; see `require_inside`.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise ValueError(f"{name[:200]!r} is not a path inside the folder")
    return name


def leaves(folder: Path, path: Path) -> bool:
    """True where `path`, which is named as below `folder`, lies elsewhere once links are followed.

    The hub's cache keeps files of a snapshot as links into its own blobs: those count as inside.
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    roots = [root]
    if os.path.basename(os.path.dirname(root)) == "snapshots":
        roots.append(os.path.join(os.path.dirname(os.path.dirname(root)), "blobs"))
    return not any(os.path.commonpath([real, each]) == each for each in roots)
