"""The bytes that a budget leaves for the linears, and what they take in each format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from awq_edge.errors import ConfigError, ModelError
from awq_edge.fit.assess import TIGHT_SHARE
from awq_edge.fit.budget import LAYOUT, plan_budget
from awq_edge.fit.device import DeviceFigures
from awq_edge.fit.planner import Planner
from awq_edge.model.archs import Decoder, decoder_from_config
from awq_edge.program.formats import planned_formats
from awq_edge.quantizer.budget.offers import Budget, Offer, Unit, formats_of
from awq_edge.recipe.recipes import Recipe, load_recipe
from awq_edge.runtime.memory import predict_memory
from tests.arch_configs import tiny_config

MODEL = Path("model")
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}
# Recipe, options: whose linears are stored differently.
TARGETS: dict[str, tuple[str, dict[str, object]]] = {
    "onnxruntime": ("cpu", {}),
    "onnxruntime, level 0": ("cpu", {"accuracy_level": 0}),
    "tensorrt": ("jetson-orin-nano-8gb", {}),
    "tensorrt-rtx, native": ("rtx-4090", {"linear": "native", "scheme": "symmetric"}),
    "cuda": ("cuda", {}),
}


def decoder(model_type: str = "llama", **changes: Any) -> Decoder:
    return decoder_from_config(
        {"model_type": model_type, **tiny_config(model_type, SIZES, **changes)}
    )


def figures(memory: int) -> DeviceFigures:
    return DeviceFigures(memory, 0, None, "recipe", None)


def planned(recipe: Recipe, **changes: Any) -> Budget:
    budget = plan_budget(MODEL, decoder(**changes), recipe)
    assert budget is not None
    return budget


def widths(budget: Budget) -> set[int]:
    return {offer.number_format.bits for unit in budget.units for offer in unit.offers}


def mixture(budget: Budget) -> dict[Unit, Offer]:
    """Units in offers that differ from block to block."""
    return {unit: unit.offers[place % len(unit.offers)] for place, unit in enumerate(budget.units)}


def test_a_recipe_without_a_budget_has_none() -> None:
    assert plan_budget(MODEL, decoder(), load_recipe("cpu", bits=3)) is None


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "phi3"])
def test_units_take_the_bytes_of_a_bundle(target: str, model_type: str) -> None:
    """The sum of the offers is what the planner counts for the blocks with formats that differ,
    whose sizes are held to those of exports (tests/exporter/test_predicted_sizes.py)."""
    name, options = TARGETS[target]
    recipe = load_recipe(name, bits_per_weight=12.0, **options)
    model = decoder(model_type)
    budget = plan_budget(MODEL, model, recipe)
    assert budget is not None
    chosen = mixture(budget)
    assert len({offer.number_format for offer in chosen.values()}) > 2

    def block_bytes(formats: dict[Unit, Offer]) -> int:
        others = formats_of(model, formats).others
        quantization = recipe.resolved({"quantization.format": LAYOUT}).quantization
        planner = Planner(model, planned_formats(model, quantization, 8, others), recipe)
        return planner.sizes(64).part_bytes["blocks"]

    smallest = {unit: unit.offers[0] for unit in budget.units}
    difference = sum(chosen[unit].nbytes - smallest[unit].nbytes for unit in budget.units)
    assert block_bytes(chosen) - block_bytes(smallest) == difference > 0


def test_what_fits_is_what_fit_predicts() -> None:
    """Rest and units come to the memory that is usable, packing and KV cache included."""
    recipe = load_recipe("cpu", fit="cpu", context=512)
    model = decoder()
    budget = plan_budget(MODEL, model, recipe, figures(200_000_000))
    assert budget is not None and budget.nbytes > 0
    chosen = mixture(budget)
    quantization = recipe.resolved({"quantization.format": LAYOUT}).quantization
    others = formats_of(model, chosen).others
    planner = Planner(model, planned_formats(model, quantization, 8, others), recipe)
    total = predict_memory(planner.sizes(512), 512).total
    spare = budget.nbytes - sum(offer.nbytes for offer in chosen.values())
    assert total + spare == int(200_000_000 * (1 - TIGHT_SHARE))
    longer = plan_budget(MODEL, model, recipe.asking(context=1024), figures(200_000_000))
    assert longer is not None and longer.nbytes < budget.nbytes
    assert "cpu with 512 tokens" in budget.words and budget.runtime == "onnxruntime"


def test_widths_that_save_where_the_runtime_stores_them() -> None:
    assert widths(planned(load_recipe("cpu", bits_per_weight=9.0))) == {2, 4, 8}
    exact = load_recipe("cpu", bits_per_weight=9.0, accuracy_level=0)
    assert widths(planned(exact)) == {4, 8}  # 2 bits have a kernel for int8 activations alone
    assert widths(planned(load_recipe("cuda", bits_per_weight=9.0))) == {3, 4, 8}
    assert widths(planned(load_recipe("jetson-orin-nano-8gb", bits_per_weight=9.0))) == {3, 4, 8}
    native = load_recipe("rtx-4090", bits_per_weight=9.0, linear="native", scheme="symmetric")
    assert widths(planned(native)) == {4, 8}


def test_linears_of_one_call_are_one_unit() -> None:
    budget = planned(load_recipe("cuda", bits_per_weight=9.0))
    first = [unit for unit in budget.units if unit.layer == 0]
    assert [(unit.group, len(unit.linears)) for unit in first] == [
        ("attention_in", 3),
        ("attention_out", 1),
        ("mlp_in", 2),
        ("mlp_out", 1),
    ]
    experts = planned(load_recipe("cpu", bits_per_weight=9.0), model_type="mixtral")
    groups = {unit.group: unit for unit in experts.units if unit.layer == 0}
    assert set(groups) == {"attention_in", "attention_out", "mlp_in", "mlp_out"}
    assert len(groups["mlp_in"].linears) == 2 * len(groups["mlp_out"].linears) > 2


def test_a_group_size_that_was_asked_for_is_the_only_one() -> None:
    free = planned(load_recipe("cuda", bits_per_weight=9.0))
    asked = planned(load_recipe("cuda", bits_per_weight=9.0, group_size=64))
    sizes = [
        {offer.number_format.group_size for unit in budget.units for offer in unit.offers}
        for budget in (free, asked)
    ]
    assert sizes == [{32, 64, 128}, {64}]


def test_linears_that_no_group_fits_count_in_16_bits() -> None:
    changes = {"intermediate_size": 400}  # down_proj reads 400 channels
    budget = planned(load_recipe("cuda", bits_per_weight=9.0), **changes)
    assert {unit.group for unit in budget.units} == {"attention_in", "attention_out", "mlp_in"}
    assert budget.fixed_bytes == 2 * 3 * 400 * 256
    room = int(9.0 * budget.weights / 8)
    assert budget.nbytes == room - budget.fixed_bytes


def test_too_small_a_budget_says_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"takes 3\.\d+ bits a weight .* give 3\.\d+ or more"):
        planned(load_recipe("cuda", bits_per_weight=2.5))
    recipe = load_recipe("cpu", fit="cpu", context=1024)
    least = 95_000_000
    with pytest.raises(ConfigError, match=r"with 1,024 tokens .* --context \d+") as error:
        plan_budget(MODEL, decoder(), recipe, figures(least))
    tokens = int(str(error.value).rpartition(" ")[2])
    assert plan_budget(MODEL, decoder(), recipe.asking(context=tokens), figures(least))
    with pytest.raises(ConfigError, match="take a smaller model or a larger device"):
        plan_budget(MODEL, decoder(), recipe, figures(1_000_000))


def test_contradictions_are_refused() -> None:
    for options, text in (
        ({"bits": 4}, "--bits 4 contradicts --bits-per-weight 5.0"),
        ({"format": "awq"}, "--format awq contradicts --bits-per-weight 5.0"),
        ({"method": "none"}, "--method none contradicts"),
        ({"fit": "cpu"}, "two budgets"),
    ):
        with pytest.raises(ConfigError, match=text):
            planned(load_recipe("cuda", bits_per_weight=5.0, **options))
    planned(load_recipe("cuda", bits_per_weight=5.0, format="compressed-tensors"))
    with pytest.raises(ModelError, match="needs symmetric weights"):
        planned(load_recipe("rtx-4090", bits_per_weight=5.0, linear="native"))
    with pytest.raises(ModelError, match="head size 40"):
        planned(load_recipe("cuda", bits_per_weight=5.0), head_dim=40)


def test_a_device_is_its_own_recipe() -> None:
    recipe = load_recipe(fit="jetson-orin-nano-8gb", context=256)
    assert recipe.name == "jetson-orin-nano-8gb"
    budget = planned(recipe)
    assert budget.runtime == "tensorrt" and "jetson-orin-nano-8gb with 256" in budget.words
    # Another recipe decides how it is quantized, not what it has to fit.
    other = planned(load_recipe("cpu", fit="jetson-orin-nano-8gb", context=256))
    assert (other.nbytes, other.runtime, other.key) == (budget.nbytes, budget.runtime, budget.key)
    assert json.loads(budget.key)["export"]["context"] == 256


def test_an_engine_has_to_be_built_there_too() -> None:
    """TensorRT's builder on the board wants its workspace beside the weights."""
    recipe = load_recipe(fit="jetson-orin-nano-8gb", context=64)
    usable = 940_000_000
    budget = plan_budget(MODEL, decoder(), recipe, figures(usable))
    more = recipe.overridden({"runtime.workspace_bytes": "500 MiB"})
    same = plan_budget(MODEL, decoder(), more, figures(usable))
    assert budget is not None and same is not None
    assert budget.nbytes < same.nbytes
    assert replace(budget, nbytes=0, key="") == replace(same, nbytes=0, key="")
