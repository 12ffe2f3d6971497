"""`awq-edge inspect` as a call: the contents of a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from awq_edge.artifacts.directories import MANIFEST, Bundle
from awq_edge.artifacts.gguf_header import is_gguf
from awq_edge.artifacts.input_files import read_json
from awq_edge.artifacts.sampling_keys import FALLBACK, GENERATION_CONFIG, sampling_of
from awq_edge.errors import ConfigError, ModelError
from awq_edge.inspect.bundle import inspect_bundle
from awq_edge.inspect.gguf import inspect_gguf
from awq_edge.inspect.model import inspect_model
from awq_edge.inspect.schema import Inspection, SamplingReport
from awq_edge.model.foreign_formats import foreign_format


def inspect_artifact(path: Path, *, hashes: bool = False, verify: bool = False) -> Inspection:
    """Inspect a bundle, a checkpoint, a model or a GGUF file. Needs neither torch nor onnx, reads
    no weight.

    hashes: give the sha256 of every file; a bundle's are in its manifest, others are computed.
    verify: read a bundle's files and compare them with its manifest.
    Raises ConfigError for a directory that is none of the three, or has no manifest to verify
    against; ArtifactError or ModelError for one too damaged to tell anything.
    """
    if is_gguf(path):
        if verify:
            raise ConfigError(f"--verify: {path} is a GGUF file, which has no hashes")
        return inspect_gguf(path, hashes=hashes)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}; give the directory of a bundle, a checkpoint or a model")
    if (path / MANIFEST).exists():
        return _with_sampling(path, inspect_bundle(path, verify=verify))
    if not (path / "config.json").exists() and foreign_format(path, {}) is None:
        raise ConfigError(
            f"{path} is neither a bundle (it has no {MANIFEST}) nor a checkpoint or model (it has "
            "no config.json)"
        )
    if verify:
        raise ConfigError(
            f"--verify: {path} has no {MANIFEST} to compare with, as bundles have; --hashes gives "
            "the sha256 of its files"
        )
    return _with_sampling(path, inspect_model(path, hashes=hashes))


def _with_sampling(path: Path, inspection: Inspection) -> Inspection:
    """The inspection with the sampling keys of chat and serve, or a note why they are unknown."""
    bundle = None
    if inspection.kind == "bundle":
        bundle = Bundle.open(path, verify=False).manifest.sampling
    source: Literal["bundle", "model", "default"] = "bundle"
    keys = bundle
    if keys is None:
        file = path / GENERATION_CONFIG
        try:
            keys = sampling_of(read_json(file), file) if file.exists() else None
        except ModelError as error:
            note = f"how chat and serve draw is not known: {error}"
            return inspection.model_copy(update={"notes": (*inspection.notes, note)})
        source = "default" if keys is None else "model"
    part = SamplingReport(keys=keys or FALLBACK, source=source)
    return inspection.model_copy(update={"sampling": part})
