"""Finished blocks on disk, so that a run that was killed continues where it was.

    .<out>.resume/
      key            what the blocks depend on; another key starts over
      choice         with a budget, the number formats that were chosen by measured losses
      00000.safetensors, 00000.json, ...     tensors as they are stored, and the block's report
      self_calibration.jsonl                 samples that the model wrote itself

The folder is locked while a run works in it (`awq_edge.process.staging`). Each file appears whole
or not at all. The folder goes when the checkpoint is published, or when the run ends with an error
of the model or the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from awq_edge._version import __version__
from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.input_files import read_bytes
from awq_edge.errors import AwqEdgeError, ConfigError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.safetensors_files import read_header
from awq_edge.process.staging import RESUME, discard, hold, kept_path
from awq_edge.quantizer.checkpoint.safetensors_stream import StreamedTensor, tensor_in_file
from awq_edge.quantizer.report.choice import ChoiceReport
from awq_edge.quantizer.report.schema import BlockReport

Tensors = dict[str, torch.Tensor]
_CHOICE = "choice"


class BlockStore:
    """The folder of one checkpoint that is being made. folder: its path."""

    def __init__(self, out: Path, key: str, *, resume: bool = True) -> None:
        """Open or begin the folder beside `out`. resume: keep the blocks that it has.

        Raises ConfigError when another run uses it.
        """
        self.folder = kept_path(out, RESUME)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = hold(self.folder)
        if lock is None:
            raise ConfigError(
                f"another run is making {out} now; wait for it or choose another --out"
            )
        self._lock = lock
        try:
            if not resume or self._read_key() != key:
                self._begin(key)
        except BaseException:
            self.close()
            raise

    def _begin(self, key: str) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        with atomic_file(self.folder / "key") as work:
            work.write_text(key, encoding="ascii")

    def finished(self, layer: int) -> BlockReport | None:
        """The report of a block that is stored, or None."""
        try:
            return BlockReport.model_validate_json(read_bytes(self._path(layer, "json")))
        except (AwqEdgeError, ValueError):
            return None

    def has_all(self, count: int) -> bool:
        """True where so many blocks, from the first on, are stored."""
        return all(self.finished(layer) is not None for layer in range(count))

    def load(self, layer: int) -> Tensors:
        """The tensors of a stored block by full name, as they are stored."""
        return load_file(self._path(layer, "safetensors"))

    def stored(self, layer: int) -> Iterator[tuple[str, StreamedTensor]]:
        """The tensors of `load`, each to be read when it is needed."""
        for name, entry in read_header(self._path(layer, "safetensors")):
            yield name, tensor_in_file(entry)

    def save(self, layer: int, tensors: Mapping[str, torch.Tensor], report: BlockReport) -> None:
        """Store a block: its tensors first, so that a report stands for a whole block."""
        with atomic_file(self._path(layer, "safetensors")) as work:
            save_tensors(tensors, work)
        with atomic_file(self._path(layer, "json")) as work:
            work.write_text(report.model_dump_json(), encoding="utf-8")

    def choice(self) -> ChoiceReport | None:
        """The number formats that were chosen for the blocks, or None."""
        try:
            return ChoiceReport.model_validate_json(read_bytes(self.folder / _CHOICE))
        except (AwqEdgeError, ValueError):
            return None

    def save_choice(self, choice: ChoiceReport) -> None:
        """Store the choice, before the first block that is quantized by it."""
        with atomic_file(self.folder / _CHOICE) as work:
            work.write_text(choice.model_dump_json(), encoding="utf-8")

    def close(self) -> None:
        """Leave the folder for the next run."""
        os.close(self._lock)

    def remove(self) -> None:
        """Remove the folder: there is nothing to continue."""
        discard(self.folder)
        self.close()

    def _path(self, layer: int, kind: str) -> Path:
        return self.folder / f"{layer:05d}.{kind}"

    def _read_key(self) -> str | None:
        try:
            return (self.folder / "key").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None


def has_blocks(out: Path) -> bool:
    """True where a run that made `out` was interrupted, or killed while it removed the folder."""
    return kept_path(out, RESUME).exists()


def kept_blocks(out: Path, *, resume: bool) -> str:
    """The blocks that an interrupted run left of `out`, and how to go on, in words. resume: whether
    the same command would continue."""
    folder = kept_path(out, RESUME)
    count = sum(1 for _ in folder.glob("*.json"))
    if count == 0:
        return "no block was finished; the same command starts over"
    blocks = "1 finished block is" if count == 1 else f"{count} finished blocks are"
    how = "(--no-resume starts over)" if resume else "without --no-resume"
    return f"{blocks} kept in {folder}; the same command goes on from there {how}"


def stored_bytes(out: Path) -> int:
    """Bytes of the finished blocks that an interrupted run has left of the checkpoint `out`."""
    return sum(file.stat().st_size for file in kept_path(out, RESUME).glob("*.safetensors"))


def resume_key(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str:
    """sha256 over all that the bytes of a block depend on: weights, settings, versions, machine.

    Weight files count by size and modification time: reading them all would cost as much as a
    block.
    """
    files = sorted({entry.file for entry in checkpoint.files.entries.values()})
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    facts = {
        "awq-edge": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "config": checkpoint.files.config,
        "files": stats,
        **settings,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError with the system's number where that failed."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library's own error hides the system's
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
