"""Makers of a result: versions of this package and its libraries, and the commit of the source."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable

from awq_edge._package import PACKAGE
from awq_edge._version import __version__
from awq_edge.process import children


@functools.cache
def source_commit() -> str | None:
    """The commit of the checkout that this package runs from, "-dirty" behind it where tracked
    files differ; None for an installed wheel or where git does not answer."""
    root = PACKAGE.parent
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    command += ["--exclude=*"]  # the commit, not the nearest tag
    try:
        result = children.run(command, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of awq-edge, Python and the given packages, without importing these.

    A package that is not installed is left out.
    """
    by_package = {"awq-edge": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return by_package
