"""Temporary names of an output, held by a lock for as long as their process lives.

    .NAME.partial-XXXXXXXX   being written             removed when nobody holds it
    .NAME.old-XXXXXXXX       was replaced              removed when nobody holds it
    .NAME.resume             finished blocks           kept for the next run of the command
    .NAME.checkpoint         finished checkpoint       kept for the next run of the command

They lie beside the output: in its parent, or inside the output where that is a folder which cannot
be renamed (`workplace`). A lock (flock) ends with its process however that ends, and cannot be
taken for another process's, as a number in a name can. Whoever makes an output clears what is
abandoned of the same name at once, and of other names in the same folder after `_STALE_SECONDS`;
work that is kept for a next run after `_FORGOTTEN_SECONDS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from awq_edge.errors import ConfigError

RESUME, CHECKPOINT = "resume", "checkpoint"
_STALE_SECONDS = 24 * 3600
_FORGOTTEN_SECONDS = 7 * 24 * 3600
_LONGEST_NAME = 255  # bytes, of nearly every file system
_CONTENTS = "contents"  # NAME where the temporary folder lies inside the output
_JOURNAL, _REPLACED = ".journal", ".replaced"
# Names of earlier versions had the number of a process in them.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(partial|old)-(\d+-)?[0-9a-f]{8}")
_KEPT = re.compile(rf"\.(?P<name>.+)\.({RESUME}|{CHECKPOINT})")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def workplace(final: Path) -> tuple[Path, str]:
    """The folder for the temporary names of an output, and NAME in them.

    final: links in it are followed.

    The folder is the parent, or `final` itself where that is a folder which has to stay the same
    one: it is empty and somebody's, the working directory, the root of a mount, or in a parent that
    cannot be written.
    """
    real = Path(os.path.realpath(final))
    if real.is_dir() and _stays(real):
        return real, _CONTENTS
    return real.parent, real.name


def temporary_name(name: str, suffix: str) -> str:
    """ ".NAME.SUFFIX", with a hash of NAME where that would be too long for a file system."""
    if len(os.fsencode(name)) + 60 > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}.{suffix}"


def kept_path(final: Path, kind: str) -> Path:
    """The path at which work on an output is kept for a next run. kind: RESUME or CHECKPOINT."""
    inside = Path(os.path.realpath(final)) / temporary_name(_CONTENTS, kind)
    if inside.exists():  # from when the output was an empty folder
        return inside
    folder, name = workplace(final)
    return folder / temporary_name(name, kind)


def is_temporary(name: str) -> bool:
    """True if a file or folder of this name is a temporary one of this module."""
    return bool(_TEMPORARY.fullmatch(name) or _KEPT.fullmatch(name))


def visible_entries(folder: Path) -> list[str]:
    """Names in a folder, without temporary ones."""
    return sorted(
        name
        for name in os.listdir(folder)
        if not (name.startswith((f".{_CONTENTS}.", f"..{_CONTENTS}.")) and is_temporary(name))
    )


def hold(path: Path) -> int | None:
    """Lock a file or folder: a descriptor that holds it until it is closed.

    None where another process holds the lock, or the path is gone. Raises OSError where there are
    no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between the two, another process may have removed what it found unlocked.
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextlib.contextmanager
def temporary(folder: Path, name: str, *, mode: int | None = None) -> Iterator[Path]:
    """Yield a new directory in `folder`, or with `mode` a new file, that is locked inside the
    block and does not outlive it, unless it was renamed."""
    while True:
        path = folder / temporary_name(name, f"partial-{uuid.uuid4().hex[:8]}")
        if mode is None:
            path.mkdir()
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        try:
            descriptor = hold(path)
        except OSError:  # a file system without locks: nobody will take it for abandoned there
            descriptor = -1
        if descriptor is not None:
            break
    try:
        yield path
    finally:
        if (path / _JOURNAL).is_file():  # interrupted while its contents were moved
            _move_contents(path)
        remove(path)
        if descriptor >= 0:
            os.close(descriptor)


def discard(path: Path) -> None:
    """Remove kept work: the next `sweep` clears the rest after a kill in the middle."""
    match = _KEPT.fullmatch(path.name)
    name = path.name if match is None else match["name"]
    gone = path.parent / temporary_name(name, f"partial-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):
        path.rename(gone)
        path = gone
    remove(path)


def discard_abandoned(path: Path) -> None:
    """`discard` kept work of an output that is made now, unless another process works on it."""
    if path.is_dir() and _is_ours(path):
        with contextlib.suppress(OSError):
            descriptor = hold(path)
            if descriptor is not None:
                discard(path)
                os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents; entries that cannot be removed stay."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sweep(final: Path) -> None:
    """Clear the temporary files of `final` that killed runs have left.

    Raises ConfigError when a living process is making the folder `final`.
    """
    if sweep_abandoned(*workplace(final)):
        raise ConfigError(f"another run is making {final} now; wait for it or choose another --out")


def sweep_abandoned(folder: Path, name: str) -> bool:
    """Clear temporary files of NAME in `folder` that nobody holds, and old ones of other names;
    True if a living process is making a directory of that NAME."""
    held = False
    own = temporary_name(name, "")
    between = temporary_name(temporary_name(name, CHECKPOINT), "")
    prefixes = (f"{own}partial-", f"{own}old-", f"{between}partial-", f"{between}old-")
    for path in _listed(folder):
        if not is_temporary(path.name):
            continue
        is_own = path.name.startswith(prefixes)
        patience = _FORGOTTEN_SECONDS if _KEPT.fullmatch(path.name) else _STALE_SECONDS
        if not is_own and (_age(path) < patience or not _is_ours(path)):
            continue
        try:
            descriptor = hold(path)
        except OSError:
            continue
        if descriptor is not None:
            _clear(path)
            os.close(descriptor)
        elif is_own and path.is_dir():
            held = True
    return held


def publish(work: Path, final: Path) -> None:
    """Give a finished directory its name, in place of an empty or replaceable one.

    final: as given to `workplace`.

    Nobody ever sees half of it under its name, except where the folder has to stay the same one:
    there the next `sweep` finishes after a kill in the middle.
    """
    real = Path(os.path.realpath(final))
    if work.parent == real:
        _write_journal(work, real)
        _move_contents(work)
    elif not real.exists():
        work.rename(real)
    elif not _exchange(work, real):
        old = real.parent / temporary_name(real.name, f"old-{uuid.uuid4().hex[:8]}")
        real.rename(old)
        work.rename(real)
        remove(old)


def _stays(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        if not visible_entries(folder) or os.path.ismount(folder):
            return True
        if os.path.samefile(folder, os.curdir):
            return True
    return not os.access(folder.parent, os.W_OK | os.X_OK)


def _listed(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []


def _age(path: Path) -> float:
    """Seconds since the last change of the path, or of an entry directly in it."""
    times = []
    for entry in (path, *(_listed(path) if path.is_dir() else ())):
        with contextlib.suppress(OSError):
            times.append(entry.lstat().st_mtime)
    return time.time() - max(times, default=time.time())


def _is_ours(path: Path) -> bool:
    """True if a folder with the name of kept work holds kept work."""
    if not _KEPT.fullmatch(path.name):
        return True
    return (path / "key").is_file() or (path / "quantization_report.json").is_file()


def _clear(path: Path) -> None:
    """Remove an abandoned path; first finish the exchange that its process had begun."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is not None and match["name"] == _CONTENTS and (path / _JOURNAL).is_file():
        _move_contents(path)
    elif match is not None and match[2] == "old":
        # Killed between two renames: what was to be replaced is still what there is.
        final = path.parent / match["name"]
        if not os.path.lexists(final):
            with contextlib.suppress(OSError):
                path.rename(final)
                return
    remove(path)


def _write_journal(work: Path, final: Path) -> None:
    """Note which names go and which come. Manifests and reports come last."""
    old = visible_entries(final)
    new = sorted(os.listdir(work), key=lambda name: (name.endswith(".json"), name))
    (work / _REPLACED).mkdir()
    part = work / f"{_JOURNAL}.part"
    part.write_text(json.dumps({"old": old, "new": new}), encoding="utf-8")
    flush(part)
    part.rename(work / _JOURNAL)
    flush(work)


def _move_contents(work: Path) -> None:
    """Do, or finish, the moves in the journal of a folder inside its output."""
    journal = json.loads((work / _JOURNAL).read_text(encoding="utf-8"))
    final, replaced = work.parent, work / _REPLACED
    for name in journal["old"]:
        if not os.path.lexists(replaced / name) and os.path.lexists(final / name):
            (final / name).rename(replaced / name)
    for name in journal["new"]:
        if os.path.lexists(work / name):
            (work / name).rename(final / name)
    flush(final)
    (work / _JOURNAL).unlink()  # from here on there is nothing to make good


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once (renameat2); False where the system cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if function(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def flush(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
