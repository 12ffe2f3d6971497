"""Which optional extra a missing package belongs to, for the one line that says how to install it.

Stages import what they need at the top; a base install (a device's) then fails with
ModuleNotFoundError, which the CLI turns into that line. No list to keep: the installed package's
own metadata says which extra has which requirement.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable

from awq_edge.errors import RuntimeUnavailableError

_DISTRIBUTION = "awq-edge"
# `torch>=2.6; extra == 'host'`, as pip stores it
_REQUIREMENT = re.compile(r"""^([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['"]([^'"]+)['"]""")
# Extras for working on awq-edge: no command needs them.
_DEVELOPMENT = ("dev", "docs")
_PREFERRED = "host"
# What each of the others is for, in the order of the road.
EXTRAS_OF_STEPS = {
    "host": "quantize, export",
    "hub": "quantize, with a hub data set as calibration text",
    "ray": "quantize --executor ray",
    "gguf": "export --gguf",
    "build": "build-plugins, where no CUDA toolkit is installed",
    "rtx": "build and run on RTX; build ahead of time",
    "jetson": "run on a Jetson",
    "pycuda": "run with PyCUDA in the place of cuda-python",
    "cuda": "--runtime cuda",
    "eval": "eval tasks",
    "serve": "serve",
}


def missing_extra(error: ModuleNotFoundError) -> RuntimeUnavailableError | None:
    """The user's error behind a failed import, or None when no extra has the package.

    error: its `name` is the module that was not found ("onnx_graphsurgeon.ir").
    """
    package = _normalized((error.name or "").partition(".")[0])
    extra = _packages().get(package)
    if extra is None:
        return None
    return RuntimeUnavailableError(
        f"this needs {package}, which is not installed; install the '{extra}' extra: "
        f"pip install '{_DISTRIBUTION}[{extra}]'"
    )


def packages_of_extras(requirements: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Extra -> its packages, of requirements as pip stores them. Those of another platform, or of
    another Python, are among them."""
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match:
            found.setdefault(match[2], []).append(_normalized(match[1]))
    return {extra: tuple(packages) for extra, packages in found.items()}


def _packages() -> dict[str, str]:
    """Package -> the extra that has it, by the metadata of the installed awq-edge."""
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return {}
    found: dict[str, str] = {}
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match and match[2] not in _DEVELOPMENT:
            package, extra = _normalized(match[1]), match[2]
            # torch is in several: the commands that need it here are the host's.
            if package not in found or extra == _PREFERRED:
                found[package] = extra
    return found


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
