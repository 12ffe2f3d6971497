"""The loss of every unit in every format that it is offered: an estimate of what it adds to KL.

    a few tokens, backward ─► KL for a squared error in each output channel (sensitivity.py)
    more tokens, forward ─► G of each input ─► squared output errors of the rounded weights
                                                             └─ times KL, summed ─► loss

Both are of the original model. Weights are rounded as the method rounds them, without AWQ's scales
and without the refinement behind GPTQ, which lower all of a unit's losses alike: the rank
correlation of GPTQ's losses with refined ones was 0.999 (ranges searched; 0.989 without, 0.952 of
plain rounding; eight units of SmolLM2-135M in 2, 3 and 4 bits). The columns of GPTQ are gone
through once for each width; in other groups of that width the loss is scaled by what plain rounding
loses there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.quantizer.blocks.stream import CalibrationStream
from awq_edge.quantizer.blocks.task import BlockOptions, block_task
from awq_edge.quantizer.blocks.weights import read_weights
from awq_edge.quantizer.budget.offers import Budget, Losses
from awq_edge.quantizer.budget.sensitivity import sensitivities
from awq_edge.quantizer.calibration.statistics import InputStatistics
from awq_edge.quantizer.calibration.text import CalibrationSet
from awq_edge.quantizer.host_memory import return_free_memory, row_pieces
from awq_edge.quantizer.run_options import Observer
from awq_edge.quantizer.search.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.search.rounding import Rounded, ScaleOverflow, round_to_nearest

_TOKENS = 16384  # of the calibration set that losses are measured on, about
_BACKWARD_TOKENS = 2048  # of these that the sensitivities are of


def measure_losses(
    checkpoint: Checkpoint,
    budget: Budget,
    calibration: CalibrationSet,
    options: BlockOptions,
    device: torch.device,
    observer: Observer | None = None,
) -> list[Losses]:
    """The losses of each unit of a budget, KL in nats a token, by offered format.

    options: of the run. Raises ModelError as the run would for weights and inputs that are not
    finite.
    """
    steps = 0 if options.refinement is None else options.refinement.range_steps
    formats = budget.smallest_formats(checkpoint.decoder)
    options = replace(options, formats=formats, refinement=None, propagate_error=False)
    few, many = (_first(calibration, tokens) for tokens in (_BACKWARD_TOKENS, _TOKENS))
    weight_of = sensitivities(checkpoint, few, options, device, observer)
    stream = CalibrationStream(checkpoint, many, options, device)
    total = checkpoint.decoder.num_layers
    losses: list[Losses] = []
    for layer in range(total):
        if observer is not None:
            observer(layer, total, f"losses of block {layer}")
        task = block_task(checkpoint, options, layer)
        weights = read_weights(checkpoint, task, device)
        statistics = stream.observe(task, weights)
        for unit in (unit for unit in budget.units if unit.layer == layer):
            loss = dict.fromkeys((offer.number_format for offer in unit.offers), 0.0)
            for names in unit.calls(task.inputs):
                rounding = _Rounding(
                    torch.cat([weights[f"{name}.weight"] for name in names]),
                    torch.cat([weight_of[layer][name] for name in names]) / many.ids.size,
                    statistics[task.input_of[names[0]]],
                )
                found = rounding.losses(list(loss), gptq=options.gptq, range_steps=steps)
                loss = {each: loss[each] + found[each] for each in loss}
            losses.append(loss)
        del weights, statistics
        return_free_memory()
    return losses


def _first(calibration: CalibrationSet, tokens: int) -> CalibrationSet:
    """The first samples of a calibration set, of about so many tokens."""
    count = -(-tokens // calibration.ids.shape[1])
    return replace(calibration, ids=calibration.ids[:count], images=calibration.images[:count])


@dataclass(frozen=True)
class _Rounding:
    """Linears of one input that are rounded. weight: float32 [out, in]. row_weights: what a squared
    output error of each row counts, float32 [out]."""

    weight: torch.Tensor
    row_weights: torch.Tensor
    inputs: InputStatistics

    def losses(
        self, formats: Sequence[NumberFormat], *, gptq: bool, range_steps: int
    ) -> dict[NumberFormat, float]:
        """The loss in each format. gptq: by GPTQ where that is better, otherwise to nearest.
        range_steps: of the search of GPTQ's ranges, see `gptq_round`."""
        losses = {each: self._loss(round_to_nearest(self.weight, each)) for each in formats}
        gram = self.inputs.gram
        if not gptq or gram is None or self.inputs.tokens == 0:
            return losses
        factor = inverse_factor(gram)
        for bits in {each.bits for each in formats}:
            alike = [each for each in formats if each.bits == bits]
            widest = max(alike, key=lambda each: each.group_size)
            with contextlib.suppress(ScaleOverflow):
                rounded = gptq_round(self.weight, factor, widest, range_steps=range_steps)
                plain, found = losses[widest], self._loss(rounded)
                if found < plain:
                    losses |= {each: losses[each] * found / plain for each in alike}
        return losses

    def _loss(self, rounded: Rounded) -> float:
        errors = [
            self.inputs.errors(rounded.rows(rows).dequantize().sub_(self.weight[rows]))
            for rows in row_pieces(self.weight)
        ]
        return float(torch.cat(errors) @ self.row_weights)
