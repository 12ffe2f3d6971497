"""Quantizing a checkpoint, block by block.

hidden ─► block i, float32 ─┬─► hidden of block i + 1
                            └─► statistics ─► executor ─► folds checked ─► tensors, report
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from awq_edge.archs import Decoder
from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ModelError
from awq_edge.layouts import Layout
from awq_edge.quantizer.block_work import BlockOptions, BlockTask, Statistics, Tensors
from awq_edge.quantizer.blocks import BlockOnDevice, BlockRunner, relative_change
from awq_edge.quantizer.calibration import CalibrationSet
from awq_edge.quantizer.executors import Executor, Pending
from awq_edge.quantizer.folding import fold
from awq_edge.quantizer.host_memory import return_free_memory
from awq_edge.quantizer.output_layer import (
    OutputLayer,
    observe_output_layer,
    output_fold_change,
    quantize_output_layer,
)
from awq_edge.quantizer.phases import PhaseClock
from awq_edge.quantizer.report import BlockReport
from awq_edge.quantizer.rounding import NumberFormat, require_representable
from awq_edge.quantizer.sizes import block_parameters, token_bytes
from awq_edge.quantizer.statistics import InputStatistics, plan_samples
from awq_edge.quantizer.writer import restored, storage_dtype
from awq_edge.torch_device import tf32_products

# Samples that a block runs at a time, by kind of device, at most: enough rows to keep it busy.
_BATCH = {"cpu": 4, "cuda": 16}
# On a CPU, activations of a batch share the memory with the block: bytes of them, as a share of the
# block's in float32, or so many where blocks are small.
_ACTIVATION_SHARE, _ACTIVATION_BYTES = 0.5, 32 << 20
_HIDDEN_SHARE = 0.25  # of a GPU's memory that hidden states may keep occupied
# The folds must not change a block's float32 output. What is left is rounding: 1e-7 per operation
# times the square root of the thousands of terms in a sum.
FOLD_TOLERANCE = 1e-4
_CHECK_TOKENS = 64  # of the first sample, on which the fold is checked
# One in so many may be sent to another expert: where two are equally wanted, rounding decides.
_REROUTED_TOKENS = 16

# (blocks done, blocks, what is being done)
Observer = Callable[[int, int, str], None]
QuantizedBlock = tuple[int, Tensors, BlockReport]


def obstacles(
    checkpoint: Checkpoint, layout: Layout, number_format: NumberFormat, layer: int
) -> dict[str, str]:
    """Linears of a block that cannot be quantized, by name relative to it, each with the reason."""
    found = {}
    for linear in checkpoint.decoder.linears(layer):
        reason = layout.obstacle(linear.out_features, linear.in_features, number_format)
        if reason is not None:
            found[linear.name] = reason
    return found


def samples_at_a_time(decoder: Decoder, length: int, device: torch.device) -> int:
    """How many samples of so many tokens a block runs at a time."""
    most = _BATCH[device.type]
    if device.type == "cuda":
        return most
    layers = range(decoder.num_layers)
    limit = max(
        _ACTIVATION_BYTES,
        int(_ACTIVATION_SHARE * 4 * max(block_parameters(decoder, layer) for layer in layers)),
    )
    sample = length * max(token_bytes(decoder, layer, length) for layer in layers)
    return min(most, max(1, limit // sample))


@dataclass(frozen=True)
class _Started:
    """A block in work. tensors: its weights, None where they are to be read again. first: hidden
    states of the first batch, on which the fold is checked."""

    task: BlockTask
    pending: Pending
    tensors: Tensors | None
    first: torch.Tensor
    sampled_inputs: tuple[str, ...]
    silent_inputs: tuple[str, ...]
    clock: PhaseClock


def _home(hidden: torch.Tensor, device: torch.device) -> torch.device:
    """Where the hidden states live between blocks: the device, if they are a small part of it."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        if hidden.nbytes < _HIDDEN_SHARE * total:
            return device
    return torch.device("cpu")


class CalibratedBlocks:
    """Quantizes the blocks of a checkpoint in order, each once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: CalibrationSet,
        options: BlockOptions,
        device: torch.device,
        executor: Executor,
    ) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._device = device
        self._executor = executor
        self._batch = samples_at_a_time(checkpoint.decoder, calibration.ids.shape[1], device)
        self._runner = BlockRunner(checkpoint, device)
        ids = torch.from_numpy(calibration.ids)
        hidden = self._runner.embed(ids, self._batch, calibration.images)
        self._hidden = hidden.to(_home(hidden, device))
        self._tokens = calibration.ids.size

    def quantize(self, layers: Iterable[int]) -> Iterator[QuantizedBlock]:
        """Layer, tensors as they are stored, by full name, and report of consecutive blocks."""
        width = 1 if self._options.propagate_error else self._executor.width
        # On a CPU it is cheaper to read a block again than to have it in memory all the time.
        keep = width == 1 and self._device.type != "cpu"
        started: deque[_Started] = deque()
        for layer in layers:
            started.append(self._start(layer, keep=keep))
            if len(started) >= width:
                yield self._finish(started.popleft())
        while started:
            yield self._finish(started.popleft())

    def skip(self, layer: int, kept: Tensors) -> None:
        """Pass over a block that was quantized before, with the same effect on the next ones.

        kept: what `quantize` gave.
        """
        if self._options.propagate_error:
            self._forward_as_stored(layer, kept)
            return
        with self._runner.block(layer, self._runner.load(layer)) as block:
            self._forward(block)

    def output_layer(self, number_format: NumberFormat) -> QuantizedBlock:
        """The output layer, once every block was quantized or skipped; as if it were one more
        block."""
        options, clock = self._options, PhaseClock(self._device)
        layer = OutputLayer(
            self._checkpoint,
            options.layout,
            number_format,
            search=options.search,
            gptq=options.gptq,
            seed=options.seed,
            device=self._device,
        )
        size = self._checkpoint.decoder.embedding_size
        inputs = InputStatistics(
            size,
            self._device,
            sample_tokens=plan_samples({"": size}, options.statistics_budget)[""],
            seed=options.seed,
            expected_tokens=self._tokens,
        )
        with clock.phase("forward"):
            observe_output_layer(
                layer, self._runner, torch.split(self._hidden, self._batch), inputs
            )
        with clock.phase("search and round"):
            outcome = quantize_output_layer(layer, inputs)
        with clock.phase("check"):
            change = output_fold_change(layer, self._runner, self._hidden[:1], outcome)
            require_unchanged("the output layer", change, self._checkpoint.decoder)
        report = BlockReport(
            layer=self._checkpoint.decoder.num_layers,
            seconds=sum(clock.seconds.values()),
            seconds_by_phase={name: round(value, 4) for name, value in clock.seconds.items()},
            fold_change=change,
            sampled_inputs=(layer.name,) if inputs.is_sampled else (),
            linears=(outcome.report,),
        )
        return report.layer, outcome.tensors, report

    def _start(self, layer: int, *, keep: bool) -> _Started:
        """Run a block on the current hidden states and begin the work on it."""
        clock = PhaseClock(self._device)
        task = self._task(layer)
        with clock.phase("load"):
            tensors = self._runner.load(layer)
            for linear in task.decoder.linears(layer):
                if linear.name not in task.obstacles:
                    require_representable(
                        task.model,
                        f"{task.full_name(linear.name)}.weight",
                        tensors[f"{linear.name}.weight"],
                        task.options.number_format,
                    )
            kept = dict(tensors) if keep else None
            return_free_memory()
        first = self._hidden[: self._batch].clone()
        with clock.phase("forward"):
            statistics = self._observe(task, tensors)
            return_free_memory()
        return _Started(
            task=task,
            pending=self._executor.submit(task, tensors, statistics),
            tensors=kept,
            first=first,
            sampled_inputs=tuple(name for name, s in statistics.items() if s.is_sampled),
            silent_inputs=tuple(name for name, s in statistics.items() if s.tokens == 0),
            clock=clock,
        )

    def _finish(self, started: _Started) -> QuantizedBlock:
        """Wait for a block's outcome and check its folds."""
        outcome, clock, layer = started.pending(), started.clock, started.task.layer
        with clock.phase("check"):
            tensors = started.tensors or self._runner.load(layer)
            change = self._check_fold(started, tensors, outcome.scales)
            tensors.clear()  # before the next block comes
            return_free_memory()
        if self._options.propagate_error:
            with clock.phase("forward"):
                self._forward_as_stored(layer, outcome.stored)
        seconds = {**clock.seconds, **outcome.seconds}
        report = BlockReport(
            layer=layer,
            seconds=sum(seconds.values()),
            seconds_by_phase={name: round(value, 4) for name, value in seconds.items()},
            fold_change=change,
            sampled_inputs=started.sampled_inputs,
            silent_inputs=started.silent_inputs,
            linears=outcome.linears,
        )
        return layer, outcome.stored, report

    def _task(self, layer: int) -> BlockTask:
        decoder = self._checkpoint.decoder
        prefix = decoder.layer_prefix(layer)
        return BlockTask(
            model=str(self._checkpoint.path),
            layer=layer,
            decoder=decoder,
            options=self._options,
            obstacles=obstacles(
                self._checkpoint, self._options.layout, self._options.number_format, layer
            ),
            storage={
                name: storage_dtype(self._checkpoint, f"{prefix}.{name}")
                for name in decoder.block_shapes(layer)
            },
        )

    def _forward_as_stored(self, layer: int, kept: Tensors) -> None:
        """Run the block that the checkpoint holds. kept: its tensors as they are stored."""
        prefix = self._checkpoint.decoder.layer_prefix(layer)
        tensors = {}
        for name in self._checkpoint.decoder.block_shapes(layer):
            linear, full = name.removesuffix(".weight"), f"{prefix}.{name}"
            if full in kept:
                tensor = kept[full].float()
            else:
                tensor = restored(
                    self._options.layout,
                    f"{prefix}.{linear}",
                    kept,
                    self._options.number_format,
                )
            tensors[name] = tensor.to(self._device)
        with self._runner.block(layer, tensors) as block:
            self._forward(block)

    def _observe(self, task: BlockTask, tensors: Tensors) -> Statistics:
        """Run the unquantized block. Returns statistics by input."""
        inputs = {
            name: linears[0]
            for name, linears in task.decoder.inputs(task.layer).items()
            if any(linear not in task.obstacles for linear in linears)
        }
        sizes = {name: tensors[f"{linear}.weight"].shape[1] for name, linear in inputs.items()}
        plan = plan_samples(sizes, self._options.statistics_budget)
        statistics = {
            name: InputStatistics(
                size,
                self._device,
                sample_tokens=plan[name],
                seed=self._options.seed,
                expected_tokens=int(self._tokens * task.decoder.token_share(task.layer, name)),
            )
            for name, size in sizes.items()
        }
        watchers = {linear: statistics[name].add for name, linear in inputs.items()}
        with self._runner.block(task.layer, tensors) as block, block.watched(watchers):
            self._forward(block, keep=not self._options.propagate_error)
        for name, found in statistics.items():
            if not found.is_finite():
                raise ModelError(
                    f"{self._checkpoint.path}: the input of '{name}' in block {task.layer} is not "
                    "finite on the calibration set; the weights are damaged"
                )
        return statistics

    def _forward(self, block: BlockOnDevice, *, keep: bool = True) -> None:
        """Run the block on the hidden states. keep: its output takes their place.

        With TF32 on a GPU: ten bits of mantissa are what 16-bit inference has. G, the searches and
        the check of the folds are in float32.
        """
        with tf32_products(True):
            for batch, part in enumerate(torch.split(self._hidden, self._batch)):
                output = block.run(part, batch)
                if keep:
                    part.copy_(output)

    def _check_fold(
        self, started: _Started, tensors: Tensors, scales: Mapping[str, torch.Tensor]
    ) -> float:
        """Relative change of the block's output. Raises ModelError where it is no rounding.

        tensors: of the block; the folded ones take their places, so that there is never a second
        block.
        """
        layer, decoder = started.task.layer, self._checkpoint.decoder

        def output() -> torch.Tensor:
            # The whole first batch keeps the arguments' shapes; a part of the output is enough.
            with self._runner.block(layer, tensors) as block:
                return block.run(started.first, 0)[0, :_CHECK_TOKENS].clone()

        before = output()
        for group in started.task.groups:
            if group.name in scales:
                fold(decoder, group, scales[group.name].to(self._device), tensors)
        given = started.first[0, :_CHECK_TOKENS].to(self._device)
        rerouted = len(given) // _REROUTED_TOKENS if decoder.has_experts(layer) else 0
        change = relative_change(before - given, output() - given, rerouted)
        require_unchanged(f"block {layer}", change, decoder)
        return change


def require_unchanged(what: str, change: float, decoder: Decoder) -> None:
    """Raise ModelError where a fold did more than round. change: of the float32 output."""
    if not change <= FOLD_TOLERANCE:
        raise ModelError(
            f"{what}: folding the scales changed its float32 output by {change:.2e} (relative; at "
            f"most {FOLD_TOLERANCE:.0e}); the scale groups of archs/{decoder.model_type}.py do not "
            "fit this model"
        )
