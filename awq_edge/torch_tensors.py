"""Tensors of a model directory in torch. Needs the [host] extra."""

from __future__ import annotations

import torch

from awq_edge.model_files import ModelFiles


def read_float32(files: ModelFiles, name: str, device: torch.device) -> torch.Tensor:
    """One tensor, float32 on the device; it travels there in the type that it is stored in.

    Raises ModelError when it is missing or the file is shorter than its header says.
    """
    bits, dtype = files.read_bits(name)
    tensor = torch.from_numpy(bits)
    if dtype == "BF16":
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(device).float()
