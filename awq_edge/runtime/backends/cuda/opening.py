"""Opening a bundle of runtime `cuda`. Needs the [cuda] extra.

torch allocates, copies and captures graphs; everything else is libawq_edge_kernels.so.
"""

from __future__ import annotations

from awq_edge.artifacts.directories import Bundle
from awq_edge.kernels.kernels import load_kernels
from awq_edge.runtime.backends.cuda.device_torch import CudaDevice
from awq_edge.runtime.backends.cuda.session import CudaSession
from awq_edge.runtime.session import SessionOptions


def open_session(bundle: Bundle, options: SessionOptions) -> CudaSession:
    """Load a bundle onto the first GPU; see `CudaSession`.

    Raises RuntimeUnavailableError where there is no GPU, torch has no CUDA, or the kernel library
    is missing or has no code for this GPU.
    """
    return CudaSession(bundle, options, CudaDevice(), load_kernels())
