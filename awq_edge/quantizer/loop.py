"""The quantizer in one function.

    for every block, and then the output layer:

        observe   run it on the calibration tokens; statistics of what its linears read
        search    scales and clips of its scale groups         ┐
        fold      each scale and its inverse into the weights  │ block.py, by `run`
        round     the codes of each linear                     ┘
        check     its float32 output is the same, folded; of two streams, quantized, no further from
                  the original's than plain rounding's
        store     on disk, so that a run that was killed continues here

Rounding to nearest is the same without `stream`: nothing is observed, searched or folded.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.quantizer.blocks.stream import CalibrationStream
from awq_edge.quantizer.blocks.task import (
    BlockOptions,
    BlockTask,
    Observed,
    Statistics,
    block_task,
    output_layer_task,
)
from awq_edge.quantizer.blocks.weights import Tensors, on_demand, read_weights
from awq_edge.quantizer.blocks.work import (
    BlockOutcome,
    ObserveStage,
    quantize_block,
    run_here,
)
from awq_edge.quantizer.calibration.statistics import WeightsOnly
from awq_edge.quantizer.checkpoint.resume import BlockStore
from awq_edge.quantizer.checkpoint.writer import restored
from awq_edge.quantizer.cluster.executors import Executor
from awq_edge.quantizer.host_memory import return_free_memory
from awq_edge.quantizer.phases import PhaseClock
from awq_edge.quantizer.report.schema import BlockReport
from awq_edge.quantizer.run_options import Observer
from awq_edge.quantizer.search.rounding import NumberFormat, Rounded, fake_quantize


@dataclass(frozen=True)
class _Begun:
    """A task in work. weights: for the check. first: `CalibrationStream.first_batch` before it.
    sampled, silent: inputs with a token sample instead of G, and without a token."""

    task: BlockTask
    weights: Tensors
    first: torch.Tensor | None
    sampled: tuple[str, ...]
    silent: tuple[str, ...]
    clock: PhaseClock


# The arguments of `quantize_block`.
_Observed: TypeAlias = tuple[BlockTask, Tensors, Statistics, ObserveStage | None]


def quantize_layers(
    checkpoint: Checkpoint,
    options: BlockOptions,
    lm_head: NumberFormat | None,
    stream: CalibrationStream | None,
    store: BlockStore,
    device: torch.device,
    *,
    executor: Executor | None = None,
    observer: Observer | None = None,
) -> list[BlockReport]:
    """Quantize every block, and the output layer as the last, into the store.

    lm_head: None where the output layer stays in 16 bits. stream: None without calibration. Blocks
    that the store has are passed over. executor: where the work is done, None for here. Returns the
    reports in order.
    Raises ModelError for weights that cannot be quantized.
    """
    total = checkpoint.decoder.num_layers
    blocks = [block_task(checkpoint, options, layer) for layer in range(total)]
    head = [] if lm_head is None else [output_layer_task(checkpoint, options, lm_head)]
    tasks = [*blocks, *head]
    reports = {task.layer: r for task in tasks if (r := store.finished(task.layer)) is not None}
    is_whole = len(reports) == len(tasks)
    begun: deque[_Begun] = deque()

    def observed(tasks: Sequence[BlockTask]) -> Iterator[_Observed]:
        """The tasks that are left, each observed when it is asked for."""
        for task in tasks:
            kept = task.layer in reports
            if observer is not None:
                observer(task.layer, total, f"{task.title}, kept" if kept else task.title)
            if not kept:
                yield begin(task)  # nothing here keeps its tensors alive
            elif stream is not None and not is_whole and task.layer < total:
                _pass_over(checkpoint, task, stream, store, device)

    def begin(task: BlockTask) -> _Observed:
        clock = PhaseClock(device)
        with clock.phase("load"):
            weights = read_weights(checkpoint, task, device)
            return_free_memory()
        # On a CPU it is cheaper to read a block again than to have it in memory all the time.
        keep = executor is None and device.type != "cpu"
        spare = dict(weights) if keep else on_demand(checkpoint, task, device)
        first = None if stream is None else stream.first_batch.clone()
        with clock.phase("forward"):
            statistics = _observe(task, weights, stream, device)
            return_free_memory()
        begun.append(
            _Begun(
                task,
                spare,
                first,
                tuple(name for name, each in statistics.items() if each.is_sampled),
                tuple(name for name, each in statistics.items() if each.tokens == 0),
                clock,
            )
        )
        again = None
        if stream is not None and len(task.stages) > 1:
            again = functools.partial(_observe_stage, task, spare, stream)
        return task, weights, statistics, again

    between = inside = run_here
    if executor is not None and options.propagates:
        inside = executor.parts  # later blocks wait for this one's outcome
    elif executor is not None:
        between = executor.blocks
    outcomes = itertools.chain(
        between(functools.partial(quantize_block, run=inside), observed(blocks)),
        run_here(quantize_block, observed(head)),
    )
    for outcome in outcomes:
        each = begun.popleft()
        task, change = each.task, None
        if stream is not None and each.first is not None:
            with each.clock.phase("check"):
                weights = {name: each.weights[name] for name in task.storage}
                each.weights.clear()
                change = stream.fold_change(task, weights, outcome.scales, each.first)
                weights.clear()  # before the next block comes
                return_free_memory()
            if options.propagates and task.layer < total:
                with each.clock.phase("forward"):
                    if options.two_streams:
                        outcome = _no_worse_than_plain(checkpoint, task, outcome, stream, device)
                    stored = as_stored(task, outcome.stored, device, outcome.codes)
                    stream.advance(task.layer, stored, quantized=True)
        reports[task.layer] = _report(each, outcome, change)
        store.save(task.layer, outcome.stored, reports[task.layer])
        del outcome, each
    return [reports[task.layer] for task in tasks]


def _observe(
    task: BlockTask, weights: Tensors, stream: CalibrationStream | None, device: torch.device
) -> Statistics:
    if stream is None:
        return dict.fromkeys(task.inputs, WeightsOnly(device))
    return stream.observe(task, weights)


def _observe_stage(
    task: BlockTask, original: Tensors, stream: CalibrationStream, current: Tensors, stage: int
) -> Observed:
    weights = {name: original[name] for name in task.storage}
    return stream.observe_stage(task, weights, current, stage)


def _no_worse_than_plain(
    checkpoint: Checkpoint,
    task: BlockTask,
    outcome: BlockOutcome,
    stream: CalibrationStream,
    device: torch.device,
) -> BlockOutcome:
    """The outcome; or plain rounding's, where that leaves a smaller error of the block's output on
    the first samples. Its report is of weights then."""
    weights = on_demand(checkpoint, task, device)
    quantized = {f"{name}.weight" for linears in task.inputs.values() for name in linears}
    nearest = {
        name: fake_quantize(weights[name], task.number_format(name.removesuffix(".weight")))
        if name in quantized
        else weights[name]
        for name in task.storage
    }
    plain_error = stream.output_error(task.layer, nearest)
    nearest.clear()
    stored = as_stored(task, outcome.stored, device, outcome.codes)
    if stream.output_error(task.layer, stored) <= plain_error:
        return outcome
    plain = replace(task.options, search=False, gptq=False, refinement=None)
    unobserved = dict.fromkeys(task.inputs, WeightsOnly(device))
    return quantize_block(replace(task, options=plain), weights, unobserved)


def _pass_over(
    checkpoint: Checkpoint,
    task: BlockTask,
    stream: CalibrationStream,
    store: BlockStore,
    device: torch.device,
) -> None:
    """Move the stream past a block that is in the store, as when it was quantized."""
    if task.options.propagates:
        stored = as_stored(task, store.load(task.layer), device)
        stream.advance(task.layer, stored, quantized=True)
    if task.options.two_streams or not task.options.propagate_error:
        stream.advance(task.layer, read_weights(checkpoint, task, device))


def as_stored(
    task: BlockTask,
    stored: Tensors,
    device: torch.device,
    codes: Mapping[str, Rounded] = MappingProxyType({}),
) -> Tensors:
    """The weights of a block as the checkpoint holds them: float32 by relative name.

    stored, codes: see `BlockOutcome`; what is not in `codes` is unpacked.
    """
    tensors = {}
    for name in task.storage:
        full = task.full_name(name)
        if (linear := name.removesuffix(".weight")) in codes:
            tensor = codes[linear].dequantize()
        elif full in stored:
            tensor = stored[full].float()
        else:
            full = full.removesuffix(".weight")
            tensor = restored(task.options.layout, full, stored, task.number_format(linear))
        tensors[name] = tensor.to(device)
    return tensors


def _report(begun: _Begun, outcome: BlockOutcome, change: float | None) -> BlockReport:
    seconds = {**begun.clock.seconds, **outcome.seconds}
    return BlockReport(
        layer=begun.task.layer,
        seconds=sum(seconds.values()),
        seconds_by_phase={name: round(value, 4) for name, value in seconds.items()},
        fold_change=change,
        sampled_inputs=begun.sampled,
        silent_inputs=begun.silent,
        linears=outcome.linears,
    )
