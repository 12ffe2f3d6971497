"""The calibration tokens on their way through the model: hidden states, block after block.

hidden ─► block i, float32 ─┬─► hidden of block i + 1
                            └─► statistics of its linears' inputs
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch

from awq_edge.device.torch_device import float32_products
from awq_edge.errors import ModelError
from awq_edge.model.archs import Decoder
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.folding import fold
from awq_edge.quantizer.blocks.runner import BlockOnDevice, BlockRunner, relative_change
from awq_edge.quantizer.blocks.sizes import block_parameters, token_bytes
from awq_edge.quantizer.blocks.task import BlockOptions, BlockTask, OutputLayerTask
from awq_edge.quantizer.blocks.weights import Tensors
from awq_edge.quantizer.calibration.statistics import InputStatistics, plan_samples
from awq_edge.quantizer.calibration.text import CalibrationSet

Scales = Mapping[str, torch.Tensor]

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


class _AllSeen(Exception):
    """Every watched linear of a block has run."""


class CalibrationStream:
    """Runs the tasks of a checkpoint on the calibration tokens, in order, each once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: CalibrationSet,
        options: BlockOptions,
        device: torch.device,
    ) -> None:
        """Embed the tokens. Raises ModelError where transformers cannot build the model."""
        self._checkpoint = checkpoint
        self._options = options
        self._device = device
        self._batch = samples_at_a_time(checkpoint.decoder, calibration.ids.shape[1], device)
        self.runner = BlockRunner(checkpoint, device)
        ids = torch.from_numpy(calibration.ids)
        hidden = self.runner.embed(ids, self._batch, calibration.images)
        self._hidden = hidden.to(_home(hidden, device))  # float32 [samples, length, hidden]
        # Behind the quantized blocks, beside the original model's; None where one stream is enough.
        self._quantized = self._hidden.clone() if options.two_streams else None
        self._tokens = calibration.ids.size

    def copied_batches(self) -> list[torch.Tensor]:
        """A copy of the hidden states: float32 [samples, length, hidden] each, as many samples as a
        block runs at a time."""
        return [batch.clone() for batch in torch.split(self._hidden, self._batch)]

    @property
    def first_batch(self) -> torch.Tensor:
        """Hidden states, of which `fold_change` wants a copy from before `observe`."""
        return self._hidden[: self._batch]

    def observe(self, task: BlockTask, tensors: Tensors) -> dict[str, InputStatistics]:
        """Run a task's unquantized weights; the statistics by input. The hidden states move on,
        unless errors are propagated or `observe_stage` follows. Of two streams the original's moves
        on, and the statistics are of pairs: the same tokens in both.

        tensors: float32, by name relative to the block. Raises ModelError where an input is not
        finite.
        """
        statistics = self._empty_statistics(task, tensors, list(task.inputs))
        if isinstance(task, OutputLayerTask):
            with self.runner.output_input({name: tensors[name] for name in task.storage}) as norm:
                for batch, part in enumerate(torch.split(self._hidden, self._batch)):
                    if self._quantized is None:
                        statistics[task.name].add(norm(part))
                    else:
                        other = self._quantized[batch * self._batch :][: len(part)]
                        statistics[task.name].add_pair(norm(part), norm(other))
        elif self._quantized is not None:
            with self.runner.block(task.layer, tensors) as block:
                self._observe_pairs(task, block, block, statistics, moves_on=len(task.stages) == 1)
        else:
            watchers = {task.inputs[name][0]: s.add for name, s in statistics.items()}
            with self.runner.block(task.layer, tensors) as block, block.watched(watchers):
                self._forward(block, keep=not self._options.propagate_error)
        return self._finite(task, statistics)

    def observe_stage(
        self, task: BlockTask, original: Tensors, current: Tensors, stage: int
    ) -> dict[str, InputStatistics]:
        """The statistics of a stage's inputs, of two streams, behind linears of the same block that
        are quantized already; with the last stage the original's hidden states move on.

        original, current: weights of the block, float32 by relative name; of the latter what is
        quantized already is as it became. stage: of `task.stages`. Raises as `observe`.
        """
        statistics = self._empty_statistics(task, original, task.stages[stage])
        with (
            self.runner.block(task.layer, current, beside=True) as behind,
            self.runner.block(task.layer, original) as before,
        ):
            last = stage == len(task.stages) - 1
            self._observe_pairs(task, before, behind, statistics, moves_on=last)
        return self._finite(task, statistics)

    def _empty_statistics(
        self, task: BlockTask, tensors: Tensors, sources: Sequence[str]
    ) -> dict[str, InputStatistics]:
        """Statistics of some inputs without a token. tensors: of the block, for the sizes."""
        sizes = {n: tensors[f"{linears[0]}.weight"].shape[1] for n, linears in task.inputs.items()}
        plan = plan_samples(sizes, self._options.statistics_budget)
        effort = self._options.refinement
        return {
            name: InputStatistics(
                sizes[name],
                self._device,
                sample_tokens=plan[name],
                seed=self._options.seed,
                expected_tokens=int(self._tokens * task.token_share(name)),
                correction=None if effort is None or self._quantized is None else effort.correction,
            )
            for name in sources
        }

    def _finite(
        self, task: BlockTask, statistics: dict[str, InputStatistics]
    ) -> dict[str, InputStatistics]:
        for name, observed in statistics.items():
            if not observed.is_finite():
                raise ModelError(
                    f"{self._checkpoint.path}: the input of '{name}' in {task.title} is not finite "
                    "on the calibration set; the weights are damaged"
                )
        return statistics

    def _observe_pairs(
        self,
        task: BlockTask,
        original: BlockOnDevice,
        quantized: BlockOnDevice,
        statistics: Mapping[str, InputStatistics],
        *,
        moves_on: bool,
    ) -> None:
        """Run a block on both streams, batch by batch, up to the inputs that are observed.

        original, quantized: the block that each stream goes through; they may be one. moves_on: the
        original stream goes through the whole of it, and its hidden states are the output.
        """
        assert self._quantized is not None
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in statistics}
        output_is_wanted = True

        def watcher(name: str) -> Callable[[torch.Tensor], None]:
            def watch(rows: torch.Tensor) -> None:
                seen[name].append(rows)
                if not output_is_wanted and all(seen.values()):
                    raise _AllSeen

            return watch

        def taken() -> dict[str, torch.Tensor]:
            empty = self._hidden.new_zeros(0, device=self._device)
            inputs = {name: torch.cat(each) if each else empty for name, each in seen.items()}
            for each in seen.values():
                each.clear()
            return inputs

        watchers = {task.inputs[name][0]: watcher(name) for name in statistics}
        with contextlib.ExitStack() as stack:
            stack.enter_context(float32_products(self._device, reduced=True))
            for block in {original, quantized}:
                stack.enter_context(block.watched(watchers))
            for batch, part in enumerate(torch.split(self._hidden, self._batch)):
                # Experts are reached one by one, by some tokens; any other input by all at once.
                output_is_wanted = task.decoder.has_experts(task.layer)
                with contextlib.suppress(_AllSeen):
                    quantized.run(self._quantized[batch * self._batch :][: len(part)], batch)
                of_quantized = taken()
                output_is_wanted = output_is_wanted or moves_on
                with contextlib.suppress(_AllSeen):
                    output = original.run(part, batch)
                    if moves_on:
                        part.copy_(output)
                of_original = taken()
                for name, each in statistics.items():
                    each.add_pair(of_original[name], of_quantized[name])

    def advance(self, layer: int, tensors: Tensors, *, quantized: bool = False) -> None:
        """Run a block with these weights, float32 by name relative to it; hidden states move on.

        quantized: those behind the quantized blocks, where there are two streams.
        """
        with self.runner.block(layer, tensors) as block:
            self._forward(block, quantized=quantized)

    def output_error(self, layer: int, tensors: Tensors) -> float:
        """Squared error of a block's output on the quantized stream's first samples, against the
        original's, which have moved on. tensors: its weights, float32 by name relative to it."""
        assert self._quantized is not None
        with (
            float32_products(self._device, reduced=True),
            self.runner.block(layer, tensors) as block,
        ):
            output = block.run(self._quantized[: self._batch], 0)
        return float((output - self.first_batch.to(output)).square().sum())

    def fold_change(
        self, task: BlockTask, tensors: Tensors, scales: Scales, first: torch.Tensor
    ) -> float:
        """Relative change of a task's float32 output by its folds. Raises ModelError where that is
        no rounding.

        tensors: before the folds; the folded ones take their places, so that there is never a
        second block. scales: by group, float32 [in]. first: `first_batch` as it was.
        """
        if isinstance(task, OutputLayerTask):
            change = self._output_change(task, tensors, scales, first)
        else:
            change = self._block_change(task, tensors, scales, first)
        if not change <= FOLD_TOLERANCE:
            raise ModelError(
                f"{task.title}: folding the scales changed its float32 output by {change:.2e} "
                f"(relative; at most {FOLD_TOLERANCE:.0e}); the scale groups of "
                f"archs/{task.decoder.model_type}.py do not fit this model"
            )
        return change

    def _block_change(
        self, task: BlockTask, tensors: Tensors, scales: Scales, first: torch.Tensor
    ) -> float:
        def output() -> torch.Tensor:
            # The whole first batch keeps the arguments' shapes; a part of the output is enough.
            with self.runner.block(task.layer, tensors) as block:
                return block.run(first, 0)[0, :_CHECK_TOKENS].clone()

        before = output()
        self._fold(task, tensors, scales)
        given = first[0, :_CHECK_TOKENS].to(self._device)
        has_experts = task.decoder.has_experts(task.layer)
        rerouted = len(given) // _REROUTED_TOKENS if has_experts else 0
        return relative_change(before - given, output() - given, rerouted)

    def _output_change(
        self, task: OutputLayerTask, tensors: Tensors, scales: Scales, first: torch.Tensor
    ) -> float:
        """The change of the output layer's input times s."""
        if not scales:
            return 0.0

        def output() -> torch.Tensor:
            norm = {name: tensors[name] for name in task.storage}
            with self.runner.output_input(norm) as run:
                return run(first[:1])

        before = output()
        self._fold(task, tensors, scales)
        return relative_change(before, output() * scales[task.name].to(self._device))

    def _fold(self, task: BlockTask, tensors: Tensors, scales: Scales) -> None:
        for group in task.groups:
            if group.name in scales:
                fold(task.decoder, group, scales[group.name].to(self._device), tensors)

    def _forward(self, block: BlockOnDevice, *, keep: bool = True, quantized: bool = False) -> None:
        """Run the block on the hidden states. keep: its output takes their place.

        With products of 16-bit inference's mantissas where the device is faster with them. G, the
        searches and the check of the folds are in float32.
        """
        with float32_products(self._device, reduced=True):
            hidden = self._hidden if self._quantized is None or not quantized else self._quantized
            for batch, part in enumerate(torch.split(hidden, self._batch)):
                output = block.run(part, batch)
                if keep:
                    part.copy_(output)


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


def _home(hidden: torch.Tensor, device: torch.device) -> torch.device:
    """Where the hidden states live between blocks: the device, if they are a small part of it."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        if hidden.nbytes < _HIDDEN_SHARE * total:
            return device
    return torch.device("cpu")
