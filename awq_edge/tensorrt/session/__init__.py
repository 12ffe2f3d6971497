"""The tensorrt backend: engines of TensorRT, on Jetson. `backends/tensorrt_rtx.py` is the same for
TensorRT for RTX. docs/tensorrt-runtime.md.

    opening.py    GPU, TensorRT and engine file -> session
    session.py    the session: buffers, chunks, logits
    contexts.py   an execution context in one profile, directly or as a CUDA graph
    creation.py   how contexts are made, kernels of TensorRT for RTX
    ports.py      what an engine takes and gives; how a prompt is cut
"""

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
    return open_engine_session(bundle, options, "tensorrt")
