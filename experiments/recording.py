"""One pass of the calibration tokens through a model, kept: weights and statistics of every block.

The quantizer's own driver runs the forward passes; what it would have quantized is noted, or
treated and fed to the next block. The whole model and all its statistics are in memory: this is for
small models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import layouts
from awq_edge.quantizer.blocks.stream import CalibrationStream
from awq_edge.quantizer.blocks.task import BlockOptions, BlockTask, Observed, block_task
from awq_edge.quantizer.blocks.weights import Tensors, read_weights
from awq_edge.quantizer.calibration.text import CalibrationSet
from awq_edge.quantizer.search.rounding import NumberFormat, NumberFormats

_GROUP = 32  # of no influence beyond which linears are recorded: those that it fits
_STATISTICS_BUDGET = 1 << 40  # GPTQ needs G itself, never a sample of tokens

# The tensors of a block as a treatment leaves them, float32, by name relative to the block.
Treat = Callable[[BlockTask, Tensors, Observed], Tensors]


@dataclass(frozen=True)
class RecordedBlock:
    """tensors: float32, by name relative to the block. statistics: by input."""

    task: BlockTask
    tensors: Tensors
    statistics: Observed


def record(
    checkpoint: Checkpoint, calibration: CalibrationSet, device: torch.device
) -> list[RecordedBlock]:
    """Weights and statistics of every block, on the device; later blocks see unquantized inputs."""
    found: list[RecordedBlock] = []

    def note(task: BlockTask, tensors: Tensors, statistics: Observed) -> Tensors:
        found.append(RecordedBlock(task, tensors, statistics))
        return tensors

    _run(checkpoint, calibration, device, note, propagate_error=False)
    return found


def treat_propagating(
    checkpoint: Checkpoint, calibration: CalibrationSet, device: torch.device, treat: Treat
) -> list[Tensors]:
    """Every block as `treat` leaves it, each seeing the outputs of those treated before it."""
    found: list[Tensors] = []

    def keep(task: BlockTask, tensors: Tensors, statistics: Observed) -> Tensors:
        found.append(treat(task, tensors, statistics))
        return found[-1]

    _run(checkpoint, calibration, device, keep, propagate_error=True)
    return found


def _run(
    checkpoint: Checkpoint,
    calibration: CalibrationSet,
    device: torch.device,
    treat: Treat,
    *,
    propagate_error: bool,
) -> None:
    options = BlockOptions(
        formats=NumberFormats(NumberFormat(4, _GROUP, "asymmetric")),
        layout=layouts()["awq"],
        statistics_budget=_STATISTICS_BUDGET,
        seed=calibration.seed,
        propagate_error=propagate_error,
        search=True,
        gptq=False,
    )
    stream = CalibrationStream(checkpoint, calibration, options, device)
    for layer in range(checkpoint.decoder.num_layers):
        task = block_task(checkpoint, options, layer)
        tensors = dict(read_weights(checkpoint, task, device))
        treated = treat(task, tensors, stream.observe(task, tensors))
        if propagate_error:
            stream.advance(layer, treated)
