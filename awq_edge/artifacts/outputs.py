"""Checks of a command's output: never its own input, never over files of another tool's making."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from awq_edge.artifacts.file_names import (
    CALIBRATION_FILE,
    QUANTIZATION_REPORT,
    RECIPE_FILE,
    REPORT_FILES,
    TOKENIZER_FILES,
)
from awq_edge.artifacts.input_files import read_json
from awq_edge.artifacts.paths import is_disk_full, system_fault, user_path
from awq_edge.errors import ConfigError, ResourceError
from awq_edge.process.staging import is_temporary, temporary_name, visible_entries, workplace
from awq_edge.units import size_text

_LARGEST_REPORT = 256_000_000  # bytes; a report of a model with 100,000 experts has a tenth
_LISTED = 3  # names in a message
_MODEL_FILES = ("config.json", *TOKENIZER_FILES, *REPORT_FILES)  # beside the weights
_OF_CHECKPOINT = ("model.safetensors.index.json", CALIBRATION_FILE)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
# Graph and weights of a bundle, as lowerings name them (`MODEL_FILE`): model.onnx, model.onnx.data.
_BUNDLE_MODEL = re.compile(r"model(\.(?!safetensors)\w+)+")
_LIBRARIES = frozenset({"libawq_edge_kernels.so", "libawq_edge_plugin.so", "build.log"})
_ENGINE = frozenset({"model.engine", "manifest.json"})
_ENGINES = "engines"
_ENGINE_FOLDER = re.compile(r"tensorrt[\w-]*-[\d.]+-SM\d+")
_RECIPE_KEYS = {"device", "runtime", "quantization", "export"}  # what `recipes show --json` has
_BUILD_KEYS = {"bundle", "engines"}  # what `build --json` has
# What other files than reports say of themselves: nothing writes a report over these.
_NO_REPORTS = frozenset(
    f"awq-edge-{name}" for name in ("conversation", "bundle", "engine", "cuda-program")
)


def check_output(
    out: Path, *, overwrite: bool, inputs: Mapping[str, str | Path | None], flag: str = "--out"
) -> None:
    """Raise ConfigError for an output folder that could not, or must not, be written at the end.

    inputs: what the command reads, by the words for it ("MODEL", "--calibration").
    """
    require_apart(out, inputs.items(), flag)
    refuse_existing(out, overwrite=overwrite)
    require_writable(out, flag)


def check_file_output(
    out: Path,
    *,
    overwrite: bool,
    inputs: Mapping[str, str | Path | None],
    is_own: Callable[[Path], bool],
    flag: str,
) -> None:
    """Raise ConfigError for an output file that could not, or must not, be written at the end.

    is_own: whether this project has written a file that is there; with `overwrite` such a one is
    replaced.
    """
    require_apart(out, inputs.items(), flag)
    real = Path(os.path.realpath(out))
    if real.is_dir():
        raise ConfigError(f"{flag} {out} is a folder; give the name of a file")
    if os.path.lexists(real):
        if not real.is_file() or not is_own(real):
            raise ConfigError(
                f"{flag} {out} exists, and awq-edge did not write it; choose another {flag}"
            )
        if not overwrite:
            raise ConfigError(f"{flag} {out} exists; choose another {flag} or give --overwrite")
    require_writable(out, flag)


def require_apart(
    out: Path, inputs: Iterable[tuple[str, str | Path | None]], flag: str = "--out"
) -> None:
    """Raise ConfigError when `out` is, holds or lies in one of `inputs`; names that do not exist,
    such as a hub id, are passed over. inputs: with the words for each."""
    real = Path(os.path.realpath(user_path(out, flag)))
    for what, given in inputs:
        if given is None or not str(given) or str(given) == "demo":
            continue
        source = Path(os.path.realpath(user_path(given, what)))
        if not source.exists():
            continue
        if _same(real, source):
            raise _not_apart(flag, out, "is", what, given)
        if any(_same(parent, source) for parent in real.parents):
            raise _not_apart(flag, out, "lies in", what, given)
        held = [parent for path in (source, *_targets(source)) for parent in path.parents]
        if any(_same(real, parent) for parent in held):
            raise _not_apart(flag, out, "holds", what, given)


def _not_apart(flag: str, out: Path, how: str, what: str, given: str | Path) -> ConfigError:
    return ConfigError(f"{flag} {out} {how} {what} {given}, which is read; choose another {flag}")


def _targets(source: Path) -> list[Path]:
    """The files that the links of an input folder lead to."""
    targets = []
    if source.is_dir():
        with contextlib.suppress(OSError):
            targets = [Path(os.path.realpath(e.path)) for e in os.scandir(source) if e.is_symlink()]
    return targets


def _same(one: Path, other: Path) -> bool:
    """True where two paths are one file or folder, also through links and second mounts."""
    if one == other:
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def refuse_existing(final: Path, *, overwrite: bool) -> None:
    """Raise ConfigError when `final` holds something that must not be replaced.

    An empty folder is taken. With `overwrite` a folder is replaced in which everything was made by
    this project.
    """
    real = Path(os.path.realpath(final))
    if os.path.islink(real):
        raise ConfigError(f"{final} is a link that leads back to itself; choose another --out")
    try:
        if not os.path.lexists(real):
            _refuse_file_above(real, final)
            return
        if not real.is_dir():
            raise ConfigError(f"{final} is a file; give --out the name of a folder")
        if not visible_entries(real):
            return
        foreign = foreign_entries(real)
    except OSError as error:
        raise system_fault(error) or error from None
    if foreign:
        raise ConfigError(
            f"{final} exists and holds {_names(foreign)}, which awq-edge did not make, or not so: "
            "--overwrite replaces a checkpoint, a bundle or an engine alone; choose another --out"
        )
    if not overwrite:
        raise ConfigError(f"{final} exists; choose another --out or give --overwrite")


def _refuse_file_above(real: Path, final: Path) -> None:
    for parent in real.parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise ConfigError(f"{final}: {parent} is a file; choose another --out")
            return


def foreign_entries(folder: Path) -> list[str]:
    """Names in a folder that no command of this project has made there; all of them where it is no
    checkpoint, bundle, engine or folder of built libraries.

    A manifest may be forged: a file counts where the manifest names it, this project gives such
    names, and weights have the size that the manifest says."""
    ours = _own_files(folder)
    foreign = []
    # Nothing of this project has folders in it but engines: a home folder is not walked through.
    for entry in os.scandir(folder):
        if is_temporary(entry.name):
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if ours is None or entry.name not in ours or (is_folder and entry.name != _ENGINES):
            foreign.append(entry.name)
        elif is_folder:
            engines = Path(entry.path)
            others = [e.name for e in engines.iterdir() if not _is_engine(e)]
            foreign += [f"{_ENGINES}/{name}" for name in others if not is_temporary(name)]
    return sorted(foreign)


def _own_files(folder: Path) -> set[str] | None:
    """Names that a command of this project has made in a folder, None where it made nothing."""
    manifest = read_own(folder / "manifest.json", "awq-edge-bundle", "awq-edge-engine")
    if manifest is not None:
        if manifest["format"] == "awq-edge-engine":
            return set(_ENGINE)
        models = _as_listed(folder, manifest.get("files"), _BUNDLE_MODEL)
        return {"manifest.json", RECIPE_FILE, _ENGINES, *_MODEL_FILES, *models}
    report = read_own(folder / QUANTIZATION_REPORT, "awq-edge-quantization-report")
    if report is not None:
        return {
            *_MODEL_FILES,
            *_OF_CHECKPOINT,
            *_as_listed(folder, report.get("weights"), _WEIGHTS),
        }
    if any((folder / name).is_file() for name in _LIBRARIES if name.endswith(".so")):
        return set(_LIBRARIES)
    # An engine whose manifest is damaged: its folder has the name that a build gives.
    return set(_ENGINE) if _ENGINE_FOLDER.fullmatch(folder.name) else None


def _as_listed(folder: Path, listed: object, names: re.Pattern[str]) -> Iterator[str]:
    """The names of a manifest's table of files that fit a pattern, of files of the size there."""
    for name, entry in listed.items() if isinstance(listed, dict) else ():
        if names.fullmatch(name) and isinstance(entry, dict):
            with contextlib.suppress(OSError):
                if os.stat(folder / name).st_size == entry.get("size"):
                    yield name


def _is_engine(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not foreign_entries(folder)


def read_own(path: Path, *formats: str) -> dict[str, Any] | None:
    """The JSON object in a file of one of these formats of this project; None for all else."""
    value = _read_object(path)
    return value if value is not None and value.get("format") in formats else None


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path, limit=_LARGEST_REPORT, error=ConfigError)
    except ConfigError:
        return None


def report_kind(path: Path) -> str | None:
    """The `format` of a report that a command of this project has written, "" where it has none
    (a recipe, what `build` made); None for any other file, a saved conversation among them."""
    value = _read_object(path)
    if value is None:
        return None
    kind = str(value.get("format", ""))
    if kind in _NO_REPORTS:
        return None
    if kind.startswith("awq-edge-"):
        return kind
    return "" if value.keys() >= _RECIPE_KEYS or value.keys() == _BUILD_KEYS else None


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def require_writable(final: Path, flag: str = "--out") -> None:
    """Raise ConfigError, ResourceError on a full disk, where no folder can be made for `final`.
    Tried, because permissions do not tell of a read-only file system."""
    folder, name = workplace(final)
    existing = existing_parent(folder)
    probe = existing / temporary_name(name, f"partial-{uuid.uuid4().hex[:8]}")
    try:
        if existing == folder and len(os.fsencode(name)) > os.pathconf(folder, "PC_NAME_MAX"):
            raise ConfigError(f"{flag} {final}: the name is too long; give a shorter one")
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        problem = f"{flag} {final}: {existing} cannot be written: {error.strerror}; "
        if is_disk_full(error):
            raise ResourceError(f"{problem}free some space or choose another {flag}") from None
        raise ConfigError(f"{problem}choose another {flag}") from None


def existing_parent(folder: Path) -> Path:
    """The nearest folder that exists, `folder` itself or above it."""
    real = Path(os.path.realpath(folder))
    while not real.exists():
        real = real.parent
    return real


def require_disk(
    directory: Path, needed: int, what: str, kept: str = "", flag: str = "--out"
) -> None:
    """Raise ResourceError when `directory` has fewer than `needed` bytes free.

    kept: what an earlier run has left for this one, in words, or nothing.
    """
    free = shutil.disk_usage(existing_parent(directory)).free
    if free < needed:
        raise ResourceError(
            f"{what} needs {size_text(needed)} in {directory}, {size_text(free)} are free; "
            f"free some space or choose another {flag}{kept}"
        )
