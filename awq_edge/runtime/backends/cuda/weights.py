"""The weight file, read piece by piece into page-locked memory and copied to the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from awq_edge.errors import ArtifactError
from awq_edge.runtime.backends.cuda.device import Device
from awq_edge.runtime.backends.cuda.program import CudaProgram

_PIECE_BYTES = 16 << 20


def load_weights(path: Path, program: CudaProgram, device: Device) -> int:
    """Address of a copy of the weight file on the device.

    Only a piece of the file at a time is in this process's memory. Raises ArtifactError when the
    file is shorter than the program says, ResourceError when memory runs out.
    """
    size, wanted = path.stat().st_size, program.weight_bytes
    if size < wanted:
        raise ArtifactError(
            f"{path} has {size} bytes, its program needs {wanted}; export the bundle again"
        )
    base = device.zeros(wanted)
    piece = device.host_zeros((min(_PIECE_BYTES, wanted),), np.uint8)
    with open(path, "rb", buffering=0) as file:
        done = 0
        while done < wanted:
            count = file.readinto(piece[: wanted - done].data)
            if not count:
                raise ArtifactError(f"{path} became shorter while it was read; export it again")
            device.upload(base + done, piece[:count])
            device.synchronize()  # before the next piece is read over this one
            done += count
    return base
