"""Tensors of a model directory in torch. Needs the [host] extra."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from awq_edge.model.files import Array, ModelFiles


def read_float32(files: ModelFiles, name: str, device: torch.device) -> torch.Tensor:
    """One tensor, float32 on the device; it travels there in the type that it is stored in.

    Raises ModelError when it is missing or the file is shorter than its header says.
    """
    bits, dtype = files.read_bits(name)
    return _as_stored(bits, dtype).to(device).float()


def float32_pieces(files: ModelFiles, name: str) -> Iterator[torch.Tensor]:
    """One tensor, some rows at a time, float32 on the CPU.

    Raises ModelError when it is missing or the file is shorter than its header says.
    """
    for bits in files.read_bit_pieces(name):
        yield _as_stored(bits, files.entries[name].dtype).float()


def is_finite(tensor: torch.Tensor) -> bool:
    """True where no element is NaN or inf, told without a second tensor of its size."""
    if tensor.numel() == 0:
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))  # NaN is both ends


def _as_stored(bits: Array, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(bits)
    return tensor.view(torch.bfloat16) if dtype == "BF16" else tensor
