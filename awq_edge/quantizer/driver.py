"""Quantizing a checkpoint, block by block.

    hidden ─► block i, float32 ─┬─► hidden of block i + 1
                                └─► statistics ─► scales, clips ─► folds ─► codes ─► shard

All scales of a block are found on its original weights and folded before anything is rounded: a
fold changes the rows of the linear before it, and codes made earlier would be stale.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from awq_edge.archs import Linear, ScaleGroup
from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ModelError
from awq_edge.quantizer.awq import GroupChoice, search_group
from awq_edge.quantizer.blocks import BlockOnDevice, BlockRunner, Tensors, relative_change
from awq_edge.quantizer.calibration import CalibrationSet
from awq_edge.quantizer.folding import fold, realise_scale, row_scale, tie_channels
from awq_edge.quantizer.gptq import gptq_round, inverse_factor
from awq_edge.quantizer.report import BlockReport, LinearReport, sqnr_db
from awq_edge.quantizer.rounding import NumberFormat, Rounded, fake_quantize, round_to_nearest
from awq_edge.quantizer.statistics import InputStatistics, plan_samples
from awq_edge.quantizer.writer import quantized_tensors, restored, storage_dtype, stored
from awq_edge.w4a16 import gemm_obstacle

# Samples that a block runs at a time, by kind of device: enough rows to keep it busy.
_BATCH = {"cpu": 4, "cuda": 16}
# The folds must not change a block's float32 output. What is left is rounding: 1e-7 per operation
# times the square root of the thousands of terms in a sum.
FOLD_TOLERANCE = 1e-4
_CHECK_TOKENS = 64  # of the first sample, on which the fold is checked

# (blocks done, blocks, what is being done)
Observer = Callable[[int, int, str], None]


@dataclass(frozen=True)
class BlockOptions:
    """How blocks are quantized. statistics_budget: bytes of one block's statistics.
    propagate_error: later blocks see the outputs of quantized ones. search: AWQ's scales and clips.
    gptq: codes by GPTQ instead of rounding to nearest, on the scaled weights."""

    number_format: NumberFormat
    statistics_budget: int
    seed: int
    propagate_error: bool
    search: bool
    gptq: bool


def obstacles(checkpoint: Checkpoint, number_format: NumberFormat) -> dict[str, str]:
    """Linears of a block that cannot be quantized, by name relative to it, each with the reason."""
    found = {}
    for linear in checkpoint.decoder.linears():
        reason = gemm_obstacle(linear.out_features, linear.in_features, number_format.group_size)
        if reason is not None:
            found[linear.name] = reason
    return found


class CalibratedBlocks:
    """Quantizes the blocks of a checkpoint in order, each once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: CalibrationSet,
        options: BlockOptions,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._device = device
        self._batch = _BATCH[device.type]
        self._obstacles = obstacles(checkpoint, options.number_format)
        self._runner = BlockRunner(checkpoint, device)
        self._hidden = self._runner.embed(torch.from_numpy(calibration.ids), self._batch)

    def quantize(self, layer: int) -> tuple[Tensors, BlockReport]:
        """The tensors of block `layer` as they are stored, by full name. Blocks come in order."""
        start = time.perf_counter()
        tensors = self._runner.load(layer)
        statistics, hidden = self._observe(layer, tensors)
        groups = self._groups()
        choices = {
            group.name: self._search(layer, group, tensors, statistics[group.name])
            for group in groups
        }
        folded = dict(tensors)
        for group in groups:
            scale = choices[group.name].scale
            if scale is not None:
                fold(self._checkpoint.decoder, group, scale, folded)
        change = self._check_fold(layer, tensors, folded)
        rounded, by_gptq = self._round(layer, folded, choices, statistics)
        result = self._stored(layer, folded, rounded)
        self._hidden = self._output_as_stored(layer, result) if self._propagates else hidden
        linears = tuple(
            self._report(linear, tensors, rounded, choices, statistics, by_gptq)
            for linear in self._checkpoint.decoder.linears()
        )
        report = BlockReport(
            layer=layer,
            seconds=time.perf_counter() - start,
            fold_change=change,
            sampled_inputs=tuple(name for name, s in statistics.items() if s.is_sampled),
            linears=linears,
        )
        return result, report

    def skip(self, layer: int, kept: Tensors) -> None:
        """Pass over a block that was quantized before, with the same effect on the next ones.

        kept: what `quantize` gave.
        """
        if self._propagates:
            self._hidden = self._output_as_stored(layer, kept)
            return
        with self._runner.block(layer, self._runner.load(layer)) as block:
            self._hidden = self._forward(block)

    @property
    def _propagates(self) -> bool:
        return self._options.propagate_error

    def _output_as_stored(self, layer: int, kept: Tensors) -> torch.Tensor:
        """Output of the block that the checkpoint holds. kept: its tensors as they are stored."""
        prefix = self._checkpoint.decoder.layer_prefix(layer)
        tensors = {}
        for name in self._runner.load(layer):
            linear, full = name.removesuffix(".weight"), f"{prefix}.{name}"
            tensor = kept[full].float() if full in kept else restored(f"{prefix}.{linear}", kept)
            tensors[name] = tensor.to(self._device)
        with self._runner.block(layer, tensors) as block:
            return self._forward(block)

    def _groups(self) -> list[ScaleGroup]:
        """The scale groups in which something is quantized."""
        groups = self._checkpoint.decoder.scale_groups()
        return [g for g in groups if any(name not in self._obstacles for name in g.linears)]

    def _observe(
        self, layer: int, tensors: Tensors
    ) -> tuple[dict[str, InputStatistics], torch.Tensor]:
        """Statistics by scale group, and the output of the unquantized block."""
        groups = self._groups()
        sizes = {g.name: tensors[f"{g.linears[0]}.weight"].shape[1] for g in groups}
        plan = plan_samples(sizes, self._options.statistics_budget)
        statistics = {
            name: InputStatistics(
                size, self._device, sample_tokens=plan[name], seed=self._options.seed
            )
            for name, size in sizes.items()
        }
        watchers = {group.linears[0]: statistics[group.name].add for group in groups}
        with self._runner.block(layer, tensors) as block, block.watched(watchers):
            hidden = self._forward(block)
        for name, found in statistics.items():
            if not found.is_finite():
                raise ModelError(
                    f"{self._checkpoint.path}: the input of '{name}' in block {layer} is not "
                    "finite on the calibration text; the weights are damaged"
                )
        return statistics, hidden

    def _forward(self, block: BlockOnDevice) -> torch.Tensor:
        """Output of the block for the current hidden states: float32, on the CPU."""
        return torch.cat([block.run(part).cpu() for part in torch.split(self._hidden, self._batch)])

    def _search(
        self, layer: int, group: ScaleGroup, tensors: Tensors, statistics: InputStatistics
    ) -> GroupChoice:
        if not self._options.search:
            return GroupChoice(None, {}, 0.0, False, False)
        weights = {
            name: tensors[f"{name}.weight"] for name in group.linears if name not in self._obstacles
        }
        prefix = self._checkpoint.decoder.layer_prefix(layer)
        storage = storage_dtype(self._checkpoint, f"{prefix}.{group.previous}.weight")
        return search_group(
            weights,
            statistics,
            self._options.number_format,
            tie=tie_channels(self._checkpoint.decoder, group),
            realise=realise_scale(group, tensors, storage),
            seed=self._options.seed,
        )

    def _check_fold(self, layer: int, before: Tensors, after: Tensors) -> float:
        """Relative change of the block's output. Raises ModelError where it is no rounding."""
        # The whole first batch keeps the arguments' shapes; a part of the output is enough.
        part = self._hidden[: self._batch]
        outputs = []
        for tensors in (before, after):
            with self._runner.block(layer, tensors) as block:
                outputs.append(block.run(part)[0, :_CHECK_TOKENS])
        change = relative_change(
            outputs[0] - part[0, :_CHECK_TOKENS].to(self._device),
            outputs[1] - part[0, :_CHECK_TOKENS].to(self._device),
        )
        if not change <= FOLD_TOLERANCE:
            raise ModelError(
                f"block {layer}: folding the scales changed its float32 output by {change:.2e} "
                f"(relative; at most {FOLD_TOLERANCE:.0e}); the scale groups of "
                f"archs/{self._checkpoint.decoder.model_type}.py do not fit this model"
            )
        return change

    def _round(
        self,
        layer: int,
        folded: Tensors,
        choices: Mapping[str, GroupChoice],
        statistics: Mapping[str, InputStatistics],
    ) -> tuple[dict[str, Rounded], set[str]]:
        """The codes of every linear, and the names of those that GPTQ made better."""
        rounded: dict[str, Rounded] = {}
        by_gptq: set[str] = set()
        for group in self._groups():
            choice, inputs = choices[group.name], statistics[group.name]
            factor = self._gptq_factor(inputs, choice.scale)
            for name in group.linears:
                if name in self._obstacles:
                    continue
                weight, clip = folded[f"{name}.weight"], choice.clips.get(name)
                try:
                    rounded[name] = round_to_nearest(weight, self._options.number_format, clip)
                    if factor is not None:
                        other = gptq_round(weight, factor, self._options.number_format, clip)
                        if self._is_better(other, rounded[name], weight, choice.scale, inputs):
                            rounded[name] = other
                            by_gptq.add(name)
                except ValueError as error:
                    prefix = self._checkpoint.decoder.layer_prefix(layer)
                    raise ModelError(
                        f"{self._checkpoint.path}: '{prefix}.{name}': {error}"
                    ) from None
        return rounded, by_gptq

    def _gptq_factor(
        self, inputs: InputStatistics, scale: torch.Tensor | None
    ) -> torch.Tensor | None:
        """What GPTQ needs of an input; None without GPTQ, or where G did not fit the budget."""
        if not self._options.gptq or inputs.gram is None:
            return None
        gram = inputs.gram
        return inverse_factor(gram if scale is None else gram / torch.outer(scale, scale))

    @staticmethod
    def _is_better(
        one: Rounded,
        other: Rounded,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        inputs: InputStatistics,
    ) -> bool:
        """Whether `one` has the smaller output error. weight: what both stand for."""

        def error(rounded: Rounded) -> float:
            difference = rounded.dequantize() - weight
            if scale is not None:
                difference /= scale
            return float(inputs.errors(difference).sum())

        return error(one) < error(other)

    def _report(
        self,
        linear: Linear,
        tensors: Tensors,
        rounded: Mapping[str, Rounded],
        choices: Mapping[str, GroupChoice],
        statistics: Mapping[str, InputStatistics],
        by_gptq: set[str],
    ) -> LinearReport:
        """Errors of what is stored, in the space of the original weight: rows and columns of the
        folds undone."""
        name = linear.name
        if name in self._obstacles:
            return LinearReport(name=name, quantized=False, reason=self._obstacles[name])
        decoder = self._checkpoint.decoder
        groups = self._groups()
        group = next(g for g in groups if name in g.linears)
        choice, inputs = choices[group.name], statistics[group.name]
        weight = tensors[f"{name}.weight"]
        unfolded = rounded[name].dequantize()
        if choice.scale is not None:
            unfolded /= choice.scale
        for other in groups:
            scale = choices[other.name].scale
            if other.previous == name and other.kind != "norm" and scale is not None:
                unfolded *= row_scale(decoder, other, scale)[:, None]
        signal = float(inputs.errors(weight).sum())
        plain = fake_quantize(weight, self._options.number_format)
        own = float(inputs.errors(unfolded - weight).sum()) / max(signal, 1e-30)
        rtn = float(inputs.errors(plain - weight).sum()) / max(signal, 1e-30)
        clip = choice.clips.get(name)
        return LinearReport(
            name=name,
            quantized=True,
            exponent=None if choice.scale is None else choice.exponent,
            weight_aware=choice.weight_aware,
            fell_back=choice.fell_back,
            clip_share=0.0 if clip is None else float((clip < 1).float().mean()),
            gptq=name in by_gptq,
            relative_mse=own,
            sqnr_db=sqnr_db(own),
            rtn_relative_mse=rtn,
            rtn_sqnr_db=sqnr_db(rtn),
        )

    def _stored(
        self, layer: int, folded: Tensors, rounded: Mapping[str, Rounded]
    ) -> dict[str, torch.Tensor]:
        prefix = self._checkpoint.decoder.layer_prefix(layer)
        found: dict[str, torch.Tensor] = {}
        for name, tensor in folded.items():
            full = f"{prefix}.{name}"
            linear = name.removesuffix(".weight")
            if name.endswith(".weight") and linear in rounded:
                found |= quantized_tensors(f"{prefix}.{linear}", rounded[linear])
            else:
                found[full] = stored(self._checkpoint, full, tensor)
        return found


class RtnBlocks:
    """Round-to-nearest, without calibration: the baseline. Errors are those of the weights."""

    def __init__(
        self, checkpoint: Checkpoint, number_format: NumberFormat, device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        self._format = number_format
        self._device = device
        self._obstacles = obstacles(checkpoint, number_format)

    def skip(self, layer: int, kept: Tensors) -> None:
        """Nothing depends on earlier blocks."""

    def quantize(self, layer: int) -> tuple[Tensors, BlockReport]:
        """The tensors of block `layer` as they are stored, by full name."""
        start = time.perf_counter()
        prefix = self._checkpoint.decoder.layer_prefix(layer)
        linears = []
        found: Tensors = {}
        names = {
            f"{prefix}.{linear.name}.weight": linear.name
            for linear in self._checkpoint.decoder.linears()
        }
        for full in self._checkpoint.decoder.weight_shapes():
            if not full.startswith(f"{prefix}."):
                continue
            tensor = torch.from_numpy(self._checkpoint.dense(full)).to(self._device).float()
            name = names.get(full)
            if name is None:
                found[full] = stored(self._checkpoint, full, tensor)
            elif name in self._obstacles:
                linears.append(
                    LinearReport(name=name, quantized=False, reason=self._obstacles[name])
                )
                found[full] = stored(self._checkpoint, full, tensor)
            else:
                rounded, report = self._linear(full, name, tensor)
                found |= quantized_tensors(full.removesuffix(".weight"), rounded)
                linears.append(report)
        return found, BlockReport(
            layer=layer,
            seconds=time.perf_counter() - start,
            fold_change=None,
            sampled_inputs=(),
            linears=tuple(linears),
        )

    def _linear(self, full: str, name: str, weight: torch.Tensor) -> tuple[Rounded, LinearReport]:
        if not torch.isfinite(weight).all():
            raise ModelError(f"{self._checkpoint.path}: '{full}' has NaN or inf")
        try:
            rounded = round_to_nearest(weight, self._format)
        except ValueError as error:
            raise ModelError(f"{self._checkpoint.path}: '{full}': {error}") from None
        noise = float((rounded.dequantize() - weight).square().sum())
        relative = noise / max(float(weight.square().sum()), 1e-30)
        return rounded, LinearReport(
            name=name,
            quantized=True,
            relative_mse=relative,
            sqnr_db=sqnr_db(relative),
            rtn_relative_mse=relative,
            rtn_sqnr_db=sqnr_db(relative),
        )
