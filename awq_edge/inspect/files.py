"""The files of a directory: sizes, hashes, and their agreement with the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from awq_edge.artifacts.directories import MANIFEST, FileEntry, hash_file
from awq_edge.inspect.schema import FileReport, FileStatus
from awq_edge.tensorrt.engines.places import ENGINES


def list_files(directory: Path, *, hashes: bool) -> tuple[FileReport, ...]:
    """Every file below a directory by relative name. hashes: read them all."""
    return tuple(
        FileReport(
            name=path.relative_to(directory).as_posix(),
            size=path.stat().st_size,
            sha256=hash_file(path).sha256 if hashes else None,
            status="unchecked",
        )
        for path in _files(directory)
    )


def compare_files(
    directory: Path, manifest: Mapping[str, FileEntry], *, verify: bool
) -> tuple[tuple[FileReport, ...], tuple[str, ...]]:
    """The files of a bundle, and their faults, one text a file.

    Sizes are always compared.

    verify: read every file and compare its sha256 too, even if it was checked before.
    """
    files, problems = [], []
    for name, entry in manifest.items():
        part, problem = _compare(directory, name, entry, verify)
        files.append(part)
        if problem is not None:
            problems.append(problem)
    for path in _files(directory):
        name = path.relative_to(directory).as_posix()
        if name not in manifest:
            part = FileReport(
                name=name, size=path.stat().st_size, sha256=None, status=_unlisted_status(name)
            )
            files.append(part)
    return tuple(files), tuple(problems)


def _unlisted_status(name: str) -> FileStatus:
    """The status of a file that the manifest does not list."""
    if name == MANIFEST:
        return "unchecked"
    # Built after the export; each has a manifest of its own beside it.
    return "engine" if name.startswith(f"{ENGINES}/") else "unlisted"


def _compare(
    directory: Path, name: str, entry: FileEntry, verify: bool
) -> tuple[FileReport, str | None]:
    part = FileReport(name=name, size=None, sha256=entry.sha256, status="missing")
    try:
        size = (directory / name).stat().st_size
    except OSError:
        return part, f"{name} is missing"
    if size != entry.size:
        part = part.model_copy(update={"size": size, "status": "resized"})
        return part, f"{name} has {size} bytes, its manifest says {entry.size}"
    if not verify:
        return part.model_copy(update={"size": size, "status": "unchecked"}), None
    sha256 = hash_file(directory / name).sha256
    if sha256 == entry.sha256:
        return part.model_copy(update={"size": size, "status": "verified"}), None
    part = part.model_copy(update={"size": size, "status": "changed"})
    return part, (
        f"{name} was changed: sha256 {sha256[:12]}..., its manifest says {entry.sha256[:12]}..."
    )


def _files(directory: Path) -> Iterator[Path]:
    """Files below a directory in the order of their names; not those in hidden folders, which are a
    version control's or a cache's."""
    for path in sorted(directory.rglob("*")):
        folders = path.relative_to(directory).parts[:-1]
        if path.is_file() and not any(part.startswith(".") for part in folders):
            yield path
