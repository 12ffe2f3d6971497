"""Sensitivities against autograd through transformers' whole model, and the losses made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from awq_edge.device import torch_device
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.layouts import layouts
from awq_edge.model.w4a16 import NumberFormat, NumberFormats
from awq_edge.quantizer.blocks.task import BlockOptions, block_task
from awq_edge.quantizer.budget.losses import measure_losses
from awq_edge.quantizer.budget.offers import Budget, Offer, Unit
from awq_edge.quantizer.budget.sensitivity import sensitivities
from awq_edge.quantizer.calibration.text import CalibrationSet
from awq_edge.quantizer.search.effort import EFFORTS
from awq_edge.quantizer.search.rounding import fake_quantize

from ..conftest import VOCAB, build_model, save_model

CPU = torch.device("cpu")
SEED = 3
# Sums of squares of float32 gradients, by two orders of operations.
SUM_TOLERANCE = 2e-3
FORMATS = [NumberFormat(bits, 32, "asymmetric") for bits in (2, 3, 4, 8)]


def options(**changes: Any) -> BlockOptions:
    values: dict[str, Any] = {
        "formats": NumberFormats(FORMATS[0]),
        "layout": layouts()["compressed-tensors"],
        "statistics_budget": 1 << 30,
        "seed": SEED,
        "propagate_error": False,
        "search": True,  # with gptq False, the method that rounds to nearest here
        "gptq": True,
    }
    return BlockOptions(**(values | changes))


def calibration(samples: int = 2, length: int = 24) -> CalibrationSet:
    ids = np.random.default_rng(7).integers(0, VOCAB, (samples, length))
    return CalibrationSet(ids, "drawn", SEED)


# A soft cap, a divisor of the logits, experts, LayerNorm and learned positions, fused projections.
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite", "mixtral", "opt", "phi3"])
def test_sensitivities_are_squared_gradients_of_the_whole_model(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The whole model computes in float32, as the blocks do here: labels are drawn from both.
    monkeypatch.setattr(torch_device, "has_bfloat16_products", lambda device: False)
    model = build_model(model_type)
    checkpoint = Checkpoint.open(save_model(model, tmp_path))
    drawn = calibration()
    found = sensitivities(checkpoint, drawn, options(), CPU)
    decoder = checkpoint.decoder
    outputs: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        return lambda module, inputs, output: outputs.update({name: output})

    names = {
        f"{decoder.layer_prefix(layer)}.{name}": (layer, name)
        for layer in range(decoder.num_layers)
        for name in block_task(checkpoint, options(), layer).input_of
    }
    modules = dict(model.named_modules())
    watched = [name for name in names if name in modules]  # experts are no modules there
    assert watched
    for name in watched:
        modules[name].register_forward_hook(hook(name))
    logits = model(torch.from_numpy(drawn.ids)).logits.reshape(drawn.ids.size, -1)
    random = torch.Generator().manual_seed(SEED)
    labels = torch.multinomial(torch.softmax(logits.detach(), 1), 1, generator=random)[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    gradients = torch.autograd.grad(loss, [outputs[name] for name in watched])
    for name, gradient in zip(watched, gradients, strict=True):
        layer, relative = names[name]
        expected = gradient.reshape(drawn.ids.size, -1).square().sum(0) / drawn.ids.size / 2
        error = (found[layer][relative] - expected).norm() / expected.norm()
        assert float(error) < SUM_TOLERANCE, name
    if decoder.moe is not None:
        assert any("experts" in name for name in found[0])
        assert any(float(each.sum()) > 0 for name, each in found[0].items() if "experts" in name)


def units(checkpoint: Checkpoint) -> tuple[Unit, ...]:
    offers = tuple(Offer(each, each.bits) for each in FORMATS)
    decoder = checkpoint.decoder
    return tuple(
        Unit(layer, group, names, offers)
        for layer in range(decoder.num_layers)
        for group, names in decoder.inputs(layer).items()
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(save_model(build_model("llama"), tmp_path_factory.mktemp("llama")))


def test_a_loss_is_the_divergence_that_a_small_error_makes(llama: Checkpoint) -> None:
    """At 8 bits errors are small enough for the second order; the estimate knows them by token and
    channel as independent, and one label a token."""
    budget = Budget(units(llama), 0, "cuda", "a test", 1, 0, "")
    drawn = calibration(samples=16, length=64)
    losses = measure_losses(llama, budget, drawn, options(gptq=False), CPU)
    ratios = []
    model = build_model("llama")
    ids = torch.from_numpy(drawn.ids)
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        for unit, loss in zip(budget.units, losses, strict=True):
            kept = {}
            for name in unit.linears:
                weight = model.get_submodule(f"model.layers.{unit.layer}.{name}").weight
                kept[name] = weight.clone()
                weight.copy_(fake_quantize(weight, FORMATS[2]))
            after = model(ids).logits.log_softmax(-1)
            measured = float((before.exp() * (before - after)).sum(-1).mean())
            ratios.append(loss[FORMATS[2]] / measured)
            for name, weight in kept.items():
                model.get_submodule(f"model.layers.{unit.layer}.{name}").weight.copy_(weight)
    assert 0.4 < float(np.median(ratios)) < 2.5, ratios


def test_more_bits_lose_less_and_gptq_less_than_plain_rounding(llama: Checkpoint) -> None:
    budget = Budget(units(llama), 0, "cuda", "a test", 1, 0, "")
    drawn = calibration(samples=8)
    plain = measure_losses(llama, budget, drawn, options(gptq=False), CPU)
    searched = measure_losses(llama, budget, drawn, options(refinement=EFFORTS["fast"]), CPU)
    assert len(plain) == len(budget.units)
    for one, other in zip(plain, searched, strict=True):
        values = [one[each] for each in FORMATS]
        assert values == sorted(values, reverse=True) and values[-1] > 0
        assert all(other[each] <= one[each] for each in FORMATS)
    assert sum(each[FORMATS[1]] for each in searched) < 0.8 * sum(
        each[FORMATS[1]] for each in plain
    )


def test_other_groups_of_a_width_are_scaled_from_the_widest(llama: Checkpoint) -> None:
    narrow, wide = NumberFormat(3, 32, "asymmetric"), NumberFormat(3, 64, "asymmetric")
    names = llama.decoder.inputs(0)["attention_in"]
    unit = Unit(0, "attention_in", names, (Offer(wide, 1), Offer(narrow, 2)))
    budget = Budget((unit,), 0, "cuda", "a test", 1, 0, "")
    drawn = calibration(samples=8)
    (plain,) = measure_losses(llama, budget, drawn, options(gptq=False), CPU)
    (gptq,) = measure_losses(llama, budget, drawn, options(), CPU)
    assert gptq[wide] < plain[wide]
    assert gptq[narrow] / plain[narrow] == pytest.approx(gptq[wide] / plain[wide])
