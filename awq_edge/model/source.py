"""Source of a checkpoint or a bundle: the original model's place, revision and hashes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from awq_edge.artifacts.directories import FileEntry, hash_file, verify_files
from awq_edge.artifacts.file_names import QUANTIZATION_REPORT
from awq_edge.artifacts.outputs import read_own
from awq_edge.artifacts.schema import Record
from awq_edge.errors import ArtifactError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelSource(Record):
    """The model at the beginning of the chain.

    name: as it was given: a directory, a hub id or "demo". path: where it lay, links followed.
    revision: the commit on the hub, of a model in the hub's cache. config_sha256: of config.json.
    weights: every weight file by name.
    """

    name: str
    path: str
    revision: str | None = None
    config_sha256: str
    weights: dict[str, FileEntry]

    @property
    def weights_sha256(self) -> str:
        """One hash for all weight files: sha256 of the lines that `sha256sum` prints of them."""
        lines = (f"{entry.sha256}  {name}\n" for name, entry in sorted(self.weights.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def facts(self) -> dict[str, str]:
        """The source as a bundle's manifest has it."""
        facts = {
            "model": self.name,
            "path": self.path,
            "config_sha256": self.config_sha256,
            "weights_sha256": self.weights_sha256,
            "weight_bytes": str(sum(entry.size for entry in self.weights.values())),
        }
        return facts if self.revision is None else facts | {"revision": self.revision}


def describe_model(checkpoint: Checkpoint, name: str | None = None) -> ModelSource:
    """Read a model's files once and describe it. name: as it was given; None for its path."""
    path = Path(os.path.abspath(checkpoint.path))
    return ModelSource(
        name=name or str(checkpoint.path),
        path=os.path.realpath(path),
        revision=path.name if path.parent.name == "snapshots" else None,
        config_sha256=hash_file(path / "config.json").sha256,
        weights={file.name: _hash_weights(file) for file in weight_files(checkpoint.files)},
    )


def weight_files(files: ModelFiles) -> list[Path]:
    """The weight files of a model, each once."""
    return sorted({entry.file for entry in files.entries.values()})


def hash_weight_files(directory: Path, files: Iterable[Path]) -> dict[str, FileEntry]:
    """Size and sha256 of weight files by their name below `directory`."""
    return {file.relative_to(directory).as_posix(): hash_file(file) for file in files}


def bundle_source(checkpoint: Checkpoint, name: str | None, *, kept: bool) -> dict[str, str]:
    """The chain behind a bundle as its manifest has it.

    The model is the one that the checkpoint's report names, or the checkpoint itself where no
    report does. name: of the checkpoint as it was given. kept: whether the checkpoint stays.
    """
    source = reported_source(checkpoint.path)
    facts = (source or describe_model(checkpoint, name)).facts()
    report = checkpoint.path / QUANTIZATION_REPORT
    if report.is_file():
        facts["quantization_report_sha256"] = hash_file(report).sha256
    if source is not None and kept:
        facts["checkpoint"] = os.path.realpath(checkpoint.path)
        facts["checkpoint_config_sha256"] = hash_file(checkpoint.path / "config.json").sha256
    return facts


def reported_source(path: Path) -> ModelSource | None:
    """The source of a directory's weights by its quantization report, if any."""
    report = read_own(path / QUANTIZATION_REPORT, "awq-edge-quantization-report") or {}
    try:
        return ModelSource.model_validate(report.get("source"))
    except ValidationError:
        return None


def verify_weights(files: ModelFiles) -> None:
    """Compare a checkpoint's weight files with the hashes in its quantization report, if any.

    Raises ArtifactError naming the first file that differs, is missing or was added.
    """
    path = files.path
    report = read_own(path / QUANTIZATION_REPORT, "awq-edge-quantization-report") or {}
    hashes = report.get("weights")
    if not hashes:  # made by another tool, or an earlier version
        return
    remedy = "quantize the model again, or give --no-verify if you changed it yourself"
    try:
        expected = {name: FileEntry.model_validate(entry) for name, entry in hashes.items()}
    except (ValidationError, AttributeError):
        raise ArtifactError(
            f"{path / QUANTIZATION_REPORT}: `weights` are no hashes of files; {remedy}"
        ) from None
    present = {file.relative_to(path).as_posix() for file in weight_files(files)}
    for name in sorted(present ^ expected.keys()):
        how = "is not in" if name in present else "is missing, but named in"
        raise ArtifactError(f"{path / name} {how} {QUANTIZATION_REPORT}; {remedy}")
    verify_files(path, expected, record=QUANTIZATION_REPORT, remedy=remedy)


def _hash_weights(file: Path) -> FileEntry:
    """The hash of a weight file; the hub's cache has the sha256 of large files as their name."""
    blob = Path(os.path.realpath(file))
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return FileEntry(size=blob.stat().st_size, sha256=blob.name)
    return hash_file(file)
