"""The tensorrt-rtx backend: engines of TensorRT for RTX, on RTX laptops and PCs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awq_edge.tensorrt.session.opening import open_engine_session

if TYPE_CHECKING:
    from awq_edge.artifacts.directories import Bundle
    from awq_edge.runtime.session import SessionOptions
    from awq_edge.tensorrt.session.session import TensorrtSession

__all__ = ["open_session"]


def open_session(bundle: Bundle, options: SessionOptions) -> TensorrtSession:
    """Load a bundle's engine onto the first GPU, building it first where it is missing.

    Raises what `open_engine_session` raises.
    """
    return open_engine_session(bundle, options, "tensorrt-rtx")
