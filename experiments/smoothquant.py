"""SmoothQuant: weights and activations in 8 bits, W8A8, as a point to compare with.

    weights       symmetric codes of 8 bits, one scale an output channel
    activations   symmetric codes of 8 bits, one scale a token, of the input of every linear of a
                  block; attention itself stays as it is
    migration     before that, inputs that come from a norm are divided by s and the columns of
                  their linears multiplied by it, s = max|x|^a / max|W|^(1 - a) of each channel,
                  a = 0.5: outliers of activations, which one scale a token serves badly, go over to
                  the weights

Source: Xiao et al. 2022 (arXiv 2211.10438), section 4; its released code smooths the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch

from awq_edge.quantizer.blocks.rounding import fold_block
from awq_edge.quantizer.blocks.task import BlockTask
from awq_edge.quantizer.blocks.weights import Tensors
from awq_edge.quantizer.search.awq import UNSCALED, GroupChoice

MIGRATION_STRENGTH = 0.5  # a
_LARGEST_CODE = 127
_SMALLEST = 1e-5  # of a maximum, as in the released code: a channel that is always 0

# max|x| of each input channel over the calibration tokens, float32 [in], by full name of a linear.
Peaks = Mapping[str, torch.Tensor]


def w8a8_round(values: torch.Tensor) -> torch.Tensor:
    """Round to 8 bits and back, one scale for each row of the last dimension: of the same shape."""
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST) / _LARGEST_CODE
    return (values / scale).round_() * scale


def w8a8_block(task: BlockTask, tensors: Tensors) -> Tensors:
    """Every linear's weight rounded. tensors: float32, by name relative to the block; kept."""
    rounded = dict(tensors)
    for name in task.linears:
        rounded[f"{name}.weight"] = w8a8_round(tensors[f"{name}.weight"])
    return rounded


def smooth_block(task: BlockTask, tensors: Tensors, peaks: Peaks) -> Tensors:
    """A block after the migration, not yet rounded: the same function of the same input."""
    choices = {}
    for group in task.groups:
        choices[group.name] = UNSCALED
        if group.kind == "norm":
            members = task.members(group)
            largest = torch.stack([tensors[f"{name}.weight"].abs().amax(dim=0) for name in members])
            peak = peaks[task.full_name(members[0])]
            choices[group.name] = GroupChoice(scale=migration_scale(peak, largest.amax(dim=0)))
    return fold_block(task, tensors, choices)


def migration_scale(peak: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """s of each input channel: float32 [in]. peak: max|x|. largest: max|W| of the channel."""
    peak, largest = peak.clamp(min=_SMALLEST), largest.clamp(min=_SMALLEST)
    return peak**MIGRATION_STRENGTH / largest ** (1 - MIGRATION_STRENGTH)


def record_peaks(linears: Mapping[str, torch.nn.Module], forward: Callable[[], None]) -> Peaks:
    """max|x| of the input of each linear during `forward`. linears: by name."""
    peaks: dict[str, torch.Tensor] = {}

    def note(name: str, values: torch.Tensor) -> None:
        peak = values.detach().flatten(end_dim=-2).abs().amax(dim=0).float()
        peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    with ExitStack() as hooks:
        for name, linear in linears.items():
            handle = linear.register_forward_pre_hook(
                lambda module, inputs, name=name: note(name, inputs[0])
            )
            hooks.callback(handle.remove)
        forward()
    return peaks
