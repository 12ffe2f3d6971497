"""Linears of a block see what those before them in the block became: order, weights, and gain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import choose_layout
from awq_edge.model.w4a16 import NumberFormat, NumberFormats
from awq_edge.quantizer import loop
from awq_edge.quantizer.blocks.runner import BlockRunner, relative_change
from awq_edge.quantizer.blocks.stream import CalibrationStream
from awq_edge.quantizer.blocks.task import BlockOptions, BlockTask, Observed, block_task
from awq_edge.quantizer.blocks.work import quantize_block
from awq_edge.quantizer.calibration.text import CalibrationSet
from awq_edge.quantizer.search.effort import EFFORTS

from .conftest import build_model, load_block, save_model

CPU = torch.device("cpu")
FORM = NumberFormat(3, 32, "asymmetric")
NORMS_IN_16_BITS = 2e-3
REDUCED_PRODUCTS = 2e-2  # of the stream: bfloat16's where the CPU has them


def options(*, search: bool = True) -> BlockOptions:
    return BlockOptions(
        formats=NumberFormats(FORM),
        layout=choose_layout("compressed-tensors", FORM.bits),
        statistics_budget=1 << 30,
        seed=0,
        propagate_error=False,
        search=search,
        gptq=True,
        refinement=EFFORTS["default"],
    )


def calibration() -> CalibrationSet:
    ids = np.random.default_rng(0).integers(3, 120, (8, 48))
    return CalibrationSet(ids=ids, source="drawn", seed=0)


def test_stages_are_in_the_order_of_the_block(tiny_model: Path) -> None:
    """As its linears run, for every architecture: a later stage waits for nothing behind it."""
    checkpoint = Checkpoint.open(tiny_model)
    runner = BlockRunner(checkpoint, CPU)
    hidden = runner.embed(torch.from_numpy(calibration().ids), batch=8)
    for layer in range(checkpoint.decoder.num_layers):
        task = block_task(checkpoint, options(), layer)
        sources = [source for stage in task.stages for source in stage]
        assert sorted(sources) == sorted(task.inputs)
        stage_of = {source: i for i, stage in enumerate(task.stages) for source in stage}
        ran: list[int] = []

        def note(number: int, ran: list[int] = ran) -> Callable[[torch.Tensor], None]:
            return lambda rows: ran.append(number)

        watchers = {task.inputs[source][0]: note(stage_of[source]) for source in stage_of}
        with runner.block(layer, load_block(checkpoint, layer)) as block:
            with block.watched(watchers):
                hidden = block.run(hidden, 0)
        first = list(dict.fromkeys(ran))
        assert first == sorted(first) and len(first) > 2, ran


def _quantized(task: BlockTask, checkpoint: Checkpoint, *, again: bool) -> float:
    """The relative change of the first block's outputs."""
    stream = CalibrationStream(checkpoint, calibration(), task.options, CPU)
    weights = load_block(checkpoint, 0)
    given = stream.first_batch.clone()
    statistics = stream.observe(task, dict(weights))
    currents: list[dict[str, torch.Tensor]] = []

    def observe_stage(current: dict[str, torch.Tensor], stage: int) -> Observed:
        currents.append(current)
        untouched = [n for later in task.stages[stage:] for s in later for n in task.inputs[s]]
        assert all(torch.equal(current[f"{n}.weight"], weights[f"{n}.weight"]) for n in untouched)
        return stream.observe_stage(task, weights, current, stage)

    outcome = quantize_block(task, dict(weights), statistics, observe_stage if again else None)
    stored = loop.as_stored(task, outcome.stored, CPU, outcome.codes)
    outputs = []
    for state in (weights, stored, *currents[-1:]):
        with stream.runner.block(0, state) as block:
            outputs.append(block.run(given, 0))
    if again:
        # Moved on with the last stage.
        assert relative_change(outputs[0], stream.first_batch) < REDUCED_PRODUCTS
        # Folded, rounded and unfolded, the weights of the stages are the function that is stored;
        # norms are stored in 16 bits.
        assert relative_change(outputs[1], outputs[2]) < NORMS_IN_16_BITS
    return relative_change(outputs[0], outputs[1])


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "opt", "mixtral"])
def test_a_block_that_is_observed_again_is_nearer(
    model_type: str, search: bool, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(save_model(build_model(model_type), tmp_path / "model"))
    task = block_task(checkpoint, options(search=search), 0)
    errors = [_quantized(task, checkpoint, again=again) for again in (False, True)]
    assert errors[1] < errors[0]


def test_fast_takes_every_linear_at_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_model(build_model("llama"), tmp_path / "model"))
    fast = replace(options(), refinement=EFFORTS["fast"])
    assert len(block_task(checkpoint, fast, 0).stages) == 1
    assert len(block_task(checkpoint, options(), 0).stages) == 4
