"""Opening a bundle of runtime `cuda`: the device, and the kernel library.

The device is torch's where torch is installed (extra cuda), else the device layer's: cuda-python or
PyCUDA. AWQ_EDGE_DEVICE_LAYER names one of these in any case.
"""

from __future__ import annotations

import importlib.util
import os

from awq_edge.artifacts.directories import Bundle
from awq_edge.device.layer import ENVIRONMENT_VARIABLE, open_layer
from awq_edge.kernels.kernels import load_kernels
from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.device_layer import LayerDevice
from awq_edge.runtime.backends.cuda.session import CudaSession
from awq_edge.runtime.session import SessionOptions


def open_session(bundle: Bundle, options: SessionOptions) -> CudaSession:
    """Load a bundle onto the first GPU; see `CudaSession`.

    Raises RuntimeUnavailableError where there is no GPU, no package drives it, or the kernel
    library is missing or has no code for this GPU.
    """
    device = open_device()
    try:
        kernels = load_kernels()
    except BaseException:
        device.close()
        raise
    return CudaSession(bundle, options, device, kernels)


def open_device() -> Device:
    """The first GPU. Raises RuntimeUnavailableError where there is none, or no package for it."""
    if not os.environ.get(ENVIRONMENT_VARIABLE) and importlib.util.find_spec("torch") is not None:
        from awq_edge.runtime.backends.cuda.device_torch import CudaDevice

        return CudaDevice()
    return LayerDevice(open_layer())
