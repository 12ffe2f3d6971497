"""Sessions of bundles: each runtime's, imported by the name in its record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from awq_edge.errors import RuntimeUnavailableError
from awq_edge.recipe.runtimes import load, runtimes

if TYPE_CHECKING:
    from awq_edge.artifacts.directories import Bundle
    from awq_edge.runtime.session import Session, SessionOptions

__all__ = ["load_backend", "open_session", "ways_out"]


def load_backend(bundle: Bundle) -> Callable[[Bundle, SessionOptions], Session]:
    """The function that opens sessions of a bundle's runtime, with the libraries that it needs.

    Raises RuntimeUnavailableError, naming both ways out, when this machine does not have them.
    """
    record = runtimes().get(bundle.manifest.runtime)
    if record is None:
        raise RuntimeUnavailableError(ways_out(bundle, "this version has no backend for it"))
    try:
        opening: Callable[[Bundle, SessionOptions], Session] = load(record.session)
    except ImportError as error:
        raise RuntimeUnavailableError(
            ways_out(bundle, f"its library is not installed ({error})")
        ) from None
    return opening


def open_session(bundle: Bundle, options: SessionOptions) -> Session:
    """Load a bundle into the backend of its runtime.

    Raises RuntimeUnavailableError, naming both ways out, when this machine cannot execute it;
    ConfigError for options that the bundle cannot meet.
    """
    return load_backend(bundle)(bundle, options)


def ways_out(bundle: Bundle, reason: str) -> str:
    """The message for a bundle that cannot be executed here. reason: why, without a full stop."""
    runtime = bundle.manifest.runtime
    return (
        f"{bundle.path} was exported for runtime '{runtime}', which this machine cannot execute: "
        f"{reason}; build and run it on its target device, or export the model with "
        "`--runtime onnxruntime` to run it here"
    )
