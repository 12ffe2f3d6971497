"""Backends, one file each, found by import.

To add one: write `backends/<name>.py`, or a package of that name, where <name> is the bundle's
`runtime` with `-` as `_`. It imports its library at the top and defines `open_session(bundle,
options) -> Session`; docs/add-a-backend.md has the whole list.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from awq_edge.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from types import ModuleType

    from awq_edge.artifacts.directories import Bundle
    from awq_edge.runtime.session import Session, SessionOptions

__all__ = ["backend_names", "load_backend", "open_session", "ways_out"]


def backend_names() -> tuple[str, ...]:
    """The runtimes that have a backend, whether or not this machine can execute them."""
    return tuple(sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__)))


def load_backend(bundle: Bundle) -> ModuleType:
    """The backend module of a bundle's runtime, with the libraries that it needs.

    Raises RuntimeUnavailableError, naming both ways out, when this machine does not have them.
    """
    runtime = bundle.manifest.runtime
    if runtime not in backend_names():
        raise RuntimeUnavailableError(ways_out(bundle, "this version has no backend for it"))
    try:
        return importlib.import_module(f"{__name__}.{runtime.replace('-', '_')}")
    except ImportError as error:
        raise RuntimeUnavailableError(
            ways_out(bundle, f"its library is not installed ({error})")
        ) from None


def open_session(bundle: Bundle, options: SessionOptions) -> Session:
    """Load a bundle into the backend of its runtime.

    Raises RuntimeUnavailableError, naming both ways out, when this machine cannot execute it;
    ConfigError for options that the bundle cannot meet.
    """
    session: Session = load_backend(bundle).open_session(bundle, options)
    return session


def ways_out(bundle: Bundle, reason: str) -> str:
    """The message for a bundle that cannot be executed here. reason: why, without a full stop."""
    runtime = bundle.manifest.runtime
    return (
        f"{bundle.path} was exported for runtime '{runtime}', which this machine cannot execute: "
        f"{reason}; build and run it on its target device, or export the model with "
        "`--runtime onnxruntime` to run it here"
    )
