"""`awq-edge inspect` as a call: what lies in a directory."""

from __future__ import annotations

from pathlib import Path

from awq_edge.artifacts import MANIFEST
from awq_edge.errors import ConfigError
from awq_edge.report.inspect_bundle import inspect_bundle
from awq_edge.report.inspect_model import inspect_model
from awq_edge.report.inspection import Inspection


def inspect_artifact(path: Path, *, hashes: bool = False, verify: bool = False) -> Inspection:
    """Inspect a bundle, a checkpoint or a model. Needs neither torch nor onnx, reads no weight.

    hashes: with the sha256 of every file; a bundle's are in its manifest, others are computed.
    verify: read a bundle's files and compare them with its manifest.
    Raises ConfigError for what is none of the three, or has no manifest to verify against;
    ArtifactError or ModelError where it is damaged so that nothing can be told.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}; give the directory of a bundle, a checkpoint or a model")
    if (path / MANIFEST).exists():
        return inspect_bundle(path, verify=verify)
    if not (path / "config.json").exists():
        raise ConfigError(
            f"{path} is neither a bundle (it has no {MANIFEST}) nor a checkpoint or model (it has "
            "no config.json)"
        )
    if verify:
        raise ConfigError(
            f"--verify: {path} has no {MANIFEST} to compare with, as bundles have; --hashes gives "
            "the sha256 of its files"
        )
    return inspect_model(path, hashes=hashes)
