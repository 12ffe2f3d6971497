"""The weight file, mapped and copied to the device in the order of use."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

from awq_edge.errors import ArtifactError
from awq_edge.runtime.backends.cuda.program import CudaProgram, Dtype

DTYPES: dict[Dtype, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int32": torch.int32,
}


def load_weights(
    path: Path, program: CudaProgram, device: torch.device
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The tensors of a weight file on a device, as views of one block of memory.

    Returns the block (uint8) and the tensors by name. Only a part of the file at a time is in host
    memory, in the system's cache. Raises ArtifactError when the file is shorter than the program
    says.
    """
    size = path.stat().st_size
    if size < program.weight_bytes:
        raise ArtifactError(
            f"{path} has {size} bytes, its program needs {program.weight_bytes}; export the bundle "
            "again"
        )
    block = torch.empty(program.weight_bytes, dtype=torch.uint8, device=device)
    # A private mapping may be written to, as far as torch knows; nobody does.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        host = torch.frombuffer(mapped, dtype=torch.uint8)
        for place in sorted(program.tensors.values(), key=lambda place: place.offset):
            begin, end = place.offset, place.offset + place.nbytes
            block[begin:end].copy_(host[begin:end])
        del host  # the mapping cannot be closed while a tensor looks at it
    return block, tensors_of(block, program)


def tensors_of(block: torch.Tensor, program: CudaProgram) -> dict[str, torch.Tensor]:
    """The tensors of a program by name, as views of a copy of its weight file (uint8)."""
    return {
        name: block[place.offset : place.offset + place.nbytes]
        .view(DTYPES[place.dtype])
        .view(place.shape)
        for name, place in program.tensors.items()
    }
