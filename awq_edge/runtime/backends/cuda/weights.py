"""The weight file, mapped and copied to the device in the order of use."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from awq_edge.errors import ArtifactError
from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.program import CudaProgram


def load_weights(path: Path, program: CudaProgram, device: Device) -> int:
    """Address of a copy of the weight file on the device.

    Only a part of the file at a time is in host memory, in the system's cache. Raises ArtifactError
    when the file is shorter than the program says, ResourceError when memory runs out.
    """
    size = path.stat().st_size
    if size < program.weight_bytes:
        raise ArtifactError(
            f"{path} has {size} bytes, its program needs {program.weight_bytes}; export the bundle "
            "again"
        )
    base = device.zeros(program.weight_bytes)
    # A private mapping may be written to, as far as NumPy knows; nobody does.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        host = np.frombuffer(mapped, np.uint8)
        for place in sorted(program.tensors.values(), key=lambda place: place.offset):
            begin, end = place.offset, place.offset + place.nbytes
            if end > begin:
                device.upload(base + begin, host[begin:end])
        device.synchronize()
        del host  # the mapping cannot be closed while an array looks at it
    return base
