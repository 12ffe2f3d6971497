"""The folder of a bundle's engines: inside it, or in the cache folder where it is read-only."""

from __future__ import annotations

import uuid
from pathlib import Path

from awq_edge.artifacts.cache import cache_directory
from awq_edge.artifacts.directories import MANIFEST, Bundle, hash_file

ENGINES = "engines"  # folder of a bundle
_HASH_DIGITS = 16


def bundle_sha256(bundle: Bundle) -> str:
    """Hexadecimal sha256 of the bundle's manifest.json, which has the hash of every file."""
    return hash_file(bundle.path / MANIFEST).sha256


def engine_name(runtime: str, version: str, sm: str) -> str:
    """Name of an engine's folder: "tensorrt-rtx-1.7.1.116-SM89"."""
    return f"{runtime}-{version}-{sm}"


def engine_folders(bundle: Bundle) -> tuple[Path, Path]:
    """The folders that engines of this bundle may be in, in the order of preference."""
    cached = cache_directory() / ENGINES / bundle_sha256(bundle)[:_HASH_DIGITS]
    return bundle.path / ENGINES, cached


def writable_folder(bundle: Bundle) -> Path:
    """The folder to build engines into. Tried, because permissions do not tell of a read-only file
    system. It need not exist."""
    inside, cached = engine_folders(bundle)
    parent = inside if inside.is_dir() else bundle.path
    probe = parent / f".writable-{uuid.uuid4().hex[:8]}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError:
        return cached
    return inside
