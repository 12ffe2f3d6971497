"""Files that were hashed and found right, so that a large one is not read again for every run.

One empty file of the cache stands for a file's path, size, inode, times and hash. Stand-ins not
used for a quarter of a year go with the next one that is added, and the oldest beyond a number:
a bundle that is gone, moved or written again leaves one behind each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from awq_edge.artifacts.cache import cache_directory

_UNUSED_SECONDS = 90 * 24 * 3600
_MOST = 1000


def is_verified(path: Path, status: os.stat_result, sha256: str) -> bool:
    """True where the file, as it is, was found to have this hash before."""
    stamp = _stamp(path, status, sha256)
    try:
        os.utime(stamp)
    except FileNotFoundError:
        return False
    except OSError:  # a cache that may be read alone
        return stamp.exists()
    return True


def remember(path: Path, status: os.stat_result, sha256: str) -> None:
    """Note that the file, as it was at `status`, has this hash; a cache that cannot be written is
    passed over."""
    with contextlib.suppress(OSError):
        stamp = _stamp(path, status, sha256)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
        _clean(stamp.parent)


def _stamp(path: Path, status: os.stat_result, sha256: str) -> Path:
    key = (
        f"{path.resolve()}:{status.st_size}:{status.st_ino}:{status.st_mtime_ns}:"
        f"{status.st_ctime_ns}:{sha256}"
    )
    return cache_directory() / "verified" / hashlib.sha256(os.fsencode(key)).hexdigest()


def _clean(folder: Path) -> None:
    stamps = []
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # another run cleans too
            stamps.append((entry.stat().st_mtime, entry.path))
    stamps.sort(reverse=True)
    oldest = time.time() - _UNUSED_SECONDS
    for index, (used, stamp) in enumerate(stamps):
        if used < oldest or index >= _MOST:
            with contextlib.suppress(OSError):
                os.unlink(stamp)
