"""The weights of a task, read from the checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.torch_tensors import read_float32
from awq_edge.quantizer.blocks.task import BlockTask, OutputLayerTask
from awq_edge.quantizer.checkpoint.writer import require_finite
from awq_edge.quantizer.search.rounding import require_representable

Tensors = dict[str, torch.Tensor]


class OnDemand(dict[str, torch.Tensor]):
    """Tensors by name, each read when it is first asked for by `[]`."""

    def __init__(self, read: Callable[[str], torch.Tensor]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, name: str) -> torch.Tensor:
        self[name] = tensor = self._read(name)
        return tensor


def read_finite(checkpoint: Checkpoint, name: str, device: torch.device) -> torch.Tensor:
    """One tensor, float32 on the device. Raises ModelError where it is not finite."""
    tensor = read_float32(checkpoint.files, name, device)
    require_finite(str(checkpoint.path), name, tensor)
    return tensor


def on_demand(checkpoint: Checkpoint, task: BlockTask, device: torch.device) -> OnDemand:
    """The weights of a task by name relative to its block, none of them read yet."""
    return OnDemand(lambda name: read_finite(checkpoint, task.full_name(name), device))


def read_weights(checkpoint: Checkpoint, task: BlockTask, device: torch.device) -> Tensors:
    """The weights of a task by name relative to its block: float32, on the device.

    With a method that looks at weights alone, those of a block are read when they are asked for.
    Raises ModelError naming a weight that is not finite, or that the number format cannot hold.
    """
    formats = {
        f"{name}.weight": task.number_format(name)
        for linears in task.inputs.values()
        for name in linears
    }

    def read(name: str) -> torch.Tensor:
        tensor = read_finite(checkpoint, task.full_name(name), device)
        if name in formats:
            require_representable(task.model, task.full_name(name), tensor, formats[name])
        return tensor

    weights = OnDemand(read)
    if isinstance(task, OutputLayerTask):
        whole = read_finite(checkpoint, task.source, device)
        require_representable(task.model, task.source, whole, task.number_format(task.name))
        for piece, rows in zip(task.pieces, torch.split(whole, task.piece_rows), strict=True):
            weights[f"{piece}.weight"] = rows
    if not task.options.calibrated:
        return weights
    # A plain dictionary, which can travel.
    return dict(weights) | {name: weights[name] for name in task.storage}
