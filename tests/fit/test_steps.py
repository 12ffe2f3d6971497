"""fit, export, build and run agree: the table of models and every recipe, by the steps' checks."""

from __future__ import annotations

import functools
import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from awq_edge.device.system_memory import SystemMemory
from awq_edge.errors import AwqEdgeError, ResourceError
from awq_edge.fit.device import DeviceFigures
from awq_edge.fit.fit import Asked, fit
from awq_edge.fit.models import ModelConfig, all_known, find_model
from awq_edge.fit.report import FitReport
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.recipe.recipes import Recipe, list_recipes, load_recipe
from awq_edge.tensorrt.builder.memory import predict_build, require_memory
from awq_edge.tensorrt.builder.targets import engine_of

MODELS = {model.name: model for model in all_known()}
# Where a recipe takes the memory from the machine: one with plenty.
PLENTY = DeviceFigures(10**12, 10**9, 1e12, "measured", "measured")
RECIPES = list_recipes()
RUNS = ("fits", "tight", "with_swap")


def device_of(recipe: Recipe) -> DeviceFigures | None:
    return PLENTY if recipe.device.memory_bytes is None else None


@functools.cache
def reports(name: str) -> tuple[tuple[Recipe, FitReport], ...]:
    """Of one model on every device; recipes of one device and two JetPacks count twice."""
    model = MODELS[name]
    return tuple((each, fit(model, each, Asked(), device_of(each))) for each in RECIPES)


def save_without_weights(directory: Path, model: ModelConfig) -> Path:
    """A model directory whose weight file is a header and a hole of the right size."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(dict(model.config)))
    end, header = 0, {}
    for name, shape in model.decoder.weight_shapes().items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return directory


def distinct(recipes: list[Recipe]) -> list[Recipe]:
    """One of each that an export is made for: devices differ in memory, which it does not ask."""
    found = {(r.runtime.backend, r.runtime.version, r.runtime.activation_dtype): r for r in recipes}
    return list(found.values())


@pytest.mark.parametrize("name", MODELS)
def test_export_refuses_what_fit_says_it_refuses(name: str, tmp_path: Path) -> None:
    """By `check_export`, which a command asks, on a model of the real size."""
    pytest.importorskip("onnx", reason="needs the [host] extra")
    from awq_edge.exporter.bundle import check_export

    model = MODELS[name]
    path = save_without_weights(tmp_path / "model", model)
    assert Checkpoint.open(path).decoder == model.decoder
    for recipe in distinct(RECIPES):
        report = fit(model, recipe, Asked(), PLENTY)
        (step,) = [each for each in report.steps if each.step == "export"]
        try:
            asked = recipe.asking(context=report.settings.context)
            check_export(Checkpoint.open(path), asked)
        except AwqEdgeError as error:
            assert not step.takes_it
            assert step.words == str(error).replace(str(path), name)
            assert report.verdict == "refused" and step.words in report.reason
        else:
            assert step.takes_it and report.verdict in RUNS


@pytest.mark.parametrize("name", MODELS)
def test_the_build_s_check_takes_what_fit_says_it_takes(name: str) -> None:
    for recipe, report in reports(name):
        if recipe.runtime.backend != "tensorrt":
            continue
        (step,) = [each for each in report.steps if each.step == "build"]
        weights = sum(size for part, size in report.weight_bytes.items() if part != "packing")
        needed = predict_build(weights, engine_of("tensorrt"), recipe.runtime.workspace_bytes)
        usable = report.device.usable_bytes
        system = SystemMemory(report.device.memory_bytes, usable, swap=step.swap_bytes)
        if step.takes_it:
            require_memory(needed, system, unified=True)
            assert report.verdict != "fits" or step.swap_bytes == 0
            if step.swap_bytes:
                with pytest.raises(ResourceError):
                    less = replace(system, swap=step.swap_bytes - 1)
                    require_memory(needed, less, unified=True)
        else:
            with pytest.raises(ResourceError):
                require_memory(needed, replace(system, swap=10**15), unified=True)
            assert report.verdict in ("refused", "does_not_fit")


@pytest.mark.parametrize("name", MODELS)
def test_what_runs_has_the_memory_for_the_context_that_it_says(name: str) -> None:
    model = MODELS[name]
    for recipe, report in reports(name):
        if report.verdict not in RUNS:
            continue
        context = min(report.max_context, report.settings.context)
        if context == report.settings.context:
            assert report.predicted_bytes.total <= report.device.usable_bytes
            continue
        again = fit(model, recipe, Asked(context=context), device_of(recipe))
        assert again.predicted_bytes.total <= report.device.usable_bytes
        assert again.verdict in RUNS


def test_every_verdict_occurs_in_the_table() -> None:
    """The walk has something to compare."""
    names = ("Llama-2-7B", "Llama-2-13B", "Llama-2-70B", "Gemma-3-1B", "OPT-125M")
    found = {report.verdict for name in names for _, report in reports(name)}
    assert found == {"fits", "tight", "with_swap", "refused", "does_not_fit"}


def test_reasons_say_the_step_and_what_it_needs() -> None:
    def reason(model: str, recipe: str, asked: Asked = Asked()) -> str:  # noqa: B008  frozen
        loaded = load_recipe(recipe)
        return fit(find_model(model), loaded, asked, device_of(loaded)).reason

    assert "export: Gemma-3-1B: activations of model_type" in reason("Gemma-3-1B", "rtx-4090")
    assert reason("Gemma-3-1B", "rtx-4090").endswith("give --activation-dtype bfloat16")
    assert "export it with --runtime onnxruntime" in reason("OPT-2.7B", "cuda")
    swap = reason("Llama-2-70B", "jetson-agx-orin-64gb")
    assert "build: " in swap and " of it swap on a disk while it builds" in swap
    assert "leave out --kv-dtype" in reason("Llama-2-7B", "rtx-4090", Asked(kv_dtype="int8"))


def test_the_recipe_that_a_refusal_names_is_taken() -> None:
    bfloat16 = load_recipe("rtx-4090").overridden({"runtime.activation_dtype": "bfloat16"})
    assert fit(find_model("Gemma-3-1B"), bfloat16, Asked()).verdict == "fits"
    assert fit(find_model("Mixtral-8x7B"), load_recipe("cpu"), Asked(), PLENTY).verdict == "fits"
