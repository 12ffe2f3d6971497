"""Verdicts, the longest context, and the changes that make a model fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from awq_edge.device.cuda_driver import GpuMemory
from awq_edge.errors import ConfigError
from awq_edge.fit.assess import Assessor, largest_context
from awq_edge.fit.changes import find_changes
from awq_edge.fit.device import DeviceFigures, device_figures
from awq_edge.fit.fit import Asked, fit, fit_all
from awq_edge.fit.models import find_model
from awq_edge.fit.report import FitReport
from awq_edge.recipe.recipes import load_recipe

GB = 10**9
LAPTOP, AGX = "rtx-4070-laptop-8gb", "jetson-agx-orin-64gb"

# The claims that the tool began with; max_context: at least, at most.
CLAIMS = [
    ("Llama-2-70B", AGX, Asked(bits=4, context=2048), "with_swap", (2048, 4096)),
    ("Llama-2-13B", LAPTOP, Asked(bits=4), "tight", (200, 600)),
    ("Llama-2-13B", LAPTOP, Asked(bits=4, lm_head_bits=4), "tight", (300, 800)),
    ("Llama-2-13B", LAPTOP, Asked(bits=4, context=300), "tight", (300, 600)),
    ("Llama-2-13B", LAPTOP, Asked(bits=16), "does_not_fit", (0, 0)),
    ("Llama-2-70B", "jetson-agx-orin-32gb", Asked(bits=4), "does_not_fit", (0, 0)),
    ("Llama-3.2-1B", "jetson-orin-nano-8gb", Asked(), "fits", (8192, 131072)),
]


@pytest.mark.parametrize(("model", "recipe", "asked", "verdict", "contexts"), CLAIMS)
def test_claims(
    model: str, recipe: str, asked: Asked, verdict: str, contexts: tuple[int, int]
) -> None:
    report = fit(find_model(model), load_recipe(recipe), asked)
    assert report.verdict == verdict
    assert contexts[0] <= report.max_context <= contexts[1]
    if report.max_context and verdict == "tight" and report.max_context < report.settings.context:
        assert f"{report.max_context:,} tokens" in report.reason


def total(report: FitReport) -> int:
    return report.predicted_bytes.total


def test_the_longest_context_is_the_last_that_fits() -> None:
    model, recipe = find_model("Llama-2-13B"), load_recipe(LAPTOP)
    most = fit(model, recipe, Asked()).max_context
    within, beyond = (fit(model, recipe, Asked(context=most + more)) for more in (0, 1))
    assert total(within) <= within.device.usable_bytes < total(beyond)
    assert (within.verdict, beyond.verdict) == ("tight", "tight")
    assert within.changes == () and beyond.changes != ()
    assert within.free_bytes >= 0 > beyond.free_bytes


def test_the_search_for_it() -> None:
    for limit in range(1, 40):
        assert largest_context(lambda tokens: tokens, limit, 33) == min(limit, 33)
    assert largest_context(lambda tokens: 10 + tokens, 10, 33) == 0


@pytest.mark.parametrize(("left", "verdict"), [(0.06, "fits"), (0.04, "tight"), (-0.01, "tight")])
def test_tight_is_little_to_spare(left: float, verdict: str) -> None:
    model, recipe = find_model("Llama-3.2-1B"), load_recipe(LAPTOP)
    needed = total(fit(model, recipe, Asked()))
    usable = int(needed / (1 - left))
    device = DeviceFigures(usable + GB, GB, 1e11, "recipe", "recipe")
    assert fit(model, recipe, Asked(), device).verdict == verdict


def test_too_short_a_context_does_not_count() -> None:
    model, recipe = find_model("Llama-3.2-1B"), load_recipe(LAPTOP)
    for context, verdict in ((63, "does_not_fit"), (64, "tight")):
        needed = total(fit(model, recipe, Asked(context=context)))
        device = DeviceFigures(needed + GB, GB, 1e11, "recipe", "recipe")
        found = fit(model, recipe, Asked(), device)
        assert (found.max_context, found.verdict) == (context, verdict)


def test_changes_come_in_the_order_of_their_cost() -> None:
    report = fit(find_model("Llama-2-13B"), load_recipe(LAPTOP), Asked(group_size=32))
    alone = [each.change for each in report.changes if " and " not in each.change]
    assert alone == [
        "int8 KV cache", "groups of 128", "4-bit lm_head", "3-bit weights",
    ]  # fmt: skip
    for each in report.changes:
        assert each.total_bytes < total(report)
        assert each.quality and each.options.startswith("--")
    assert report.cheapest_change is not None
    longest = fit(find_model("Llama-2-13B"), load_recipe(LAPTOP), Asked()).max_context
    assert report.cheapest_change.options == f"--group-size 128 --context {longest}"


def test_the_cheapest_change_does_what_it_says() -> None:
    model, recipe = find_model("Qwen3-30B-A3B"), load_recipe("jetson-orin-nx-16gb")
    report = fit(model, recipe, Asked())
    assert report.verdict == "does_not_fit"
    change = report.cheapest_change
    assert change is not None and change.options == "--bits 3"
    after = fit(model, recipe, Asked(bits=3))
    assert after.verdict == "with_swap"
    assert (total(after), after.max_context) == (change.total_bytes, change.max_context)


def test_a_change_that_no_runtime_has_is_not_the_cheapest() -> None:
    model, recipe = find_model("Llama-3-8B"), load_recipe(LAPTOP)
    full = fit(model, recipe, Asked(context=8192))
    device = DeviceFigures(total(full) - 200_000_000 + GB, GB, 1e11, "recipe", "recipe")
    report = fit(model, recipe, Asked(context=8192), device)
    first = report.changes[0]
    assert first.change == "int8 KV cache" and first.makes_it_fit and not first.available
    assert report.cheapest_change is not None and report.cheapest_change.available
    eight = fit(model, recipe, Asked(context=8192, kv_dtype="int8"), device)
    assert total(eight) == first.total_bytes
    assert eight.verdict == "refused" and "no runtime here makes an int8" in eight.reason


def test_unquantized_is_first_brought_down_by_bits() -> None:
    report = fit(find_model("Llama-3-8B"), load_recipe("jetson-orin-nx-16gb"), Asked(bits=16))
    assert report.verdict == "does_not_fit"
    assert report.settings.lm_head_bits == 16 and report.settings.group_size is None
    assert report.cheapest_change is not None
    assert report.cheapest_change.options == "--bits 8 --lm-head-bits 8"


def test_nothing_helps_what_is_far_too_large() -> None:
    report = fit(find_model("Llama-2-70B"), load_recipe("jetson-orin-nano-8gb"), Asked())
    assert report.verdict == "does_not_fit" and report.cheapest_change is None
    assert report.changes


def test_the_roofline() -> None:
    recipe = load_recipe(AGX)
    report = fit(find_model("Llama-2-70B"), recipe, Asked(context=2048))
    roofline, bandwidth = report.roofline_tokens_per_s, recipe.device.memory_bandwidth
    assert roofline is not None and bandwidth is not None and roofline.context == 2048
    assert roofline.empty == bandwidth / report.bytes_per_token
    cache = 2048 * report.kv_bytes_per_token
    assert cache == report.predicted_bytes.kv_cache
    assert roofline.full == bandwidth / (report.bytes_per_token + cache)
    # 70 B weights of 4 bits and their groups, but the embedding.
    assert 35 * GB < report.bytes_per_token < 36.5 * GB
    (slow,) = report.power_modes
    assert slow.name == "MODE_15W" and slow.roofline_empty < roofline.empty


def test_linears_that_no_group_fits_are_told(tmp_path: Path) -> None:
    """An FFN that is no multiple of 128 leaves its second linear as it is where that is asked."""
    recipe = load_recipe(LAPTOP)
    model = find_model("Gemma-3-1B")
    notes = fit(model, recipe, Asked()).notes
    assert not any("stay unquantized" in note for note in notes)
    config = {**model.config, "intermediate_size": 6912 + 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    odd = find_model(str(tmp_path))
    report = fit(odd, recipe, Asked(group_size=128))
    assert any(note.startswith("26 of 182 linears, 29.7% of the blocks' weights, stay unquantized")
               for note in report.notes)  # fmt: skip
    fitting = fit(odd, recipe, Asked())
    assert fitting.settings.group_size == 64
    assert total(fitting) < total(report)


def test_experts_read_their_share() -> None:
    """onnxruntime reads the experts of a token, TensorRT all of them."""
    model = find_model("Mixtral-8x7B")
    routed = fit(
        model, load_recipe("cpu"), Asked(), DeviceFigures(64 * GB, GB, 1e11, "recipe", "recipe")
    )
    dense = fit(model, load_recipe(AGX), Asked())
    assert routed.bytes_per_token < 0.45 * dense.bytes_per_token


def test_a_quantized_checkpoint_is_what_its_config_says(tmp_path: Path) -> None:
    known = find_model("Llama-2-7B")
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}
    config = {**known.config, "quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, recipe = find_model(str(tmp_path)), load_recipe(LAPTOP)
    report = fit(model, recipe, Asked())
    assert (report.settings.bits, report.settings.group_size) == (4, 64)
    assert total(report) > total(fit(known, recipe, Asked(group_size=128)))
    with pytest.raises(ConfigError, match=r"--bits 3 contradicts .*quantized with 4"):
        fit(model, recipe, Asked(bits=3))
    with pytest.raises(ConfigError, match="--group-size 128 contradicts"):
        fit(model, recipe, Asked(group_size=128))
    small = DeviceFigures(5 * GB, GB, 1e11, "recipe", "recipe")
    changes = fit(model, recipe, Asked(), small).changes
    assert all("weights" not in each.change and "groups" not in each.change for each in changes)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Asked(bits=5), "bits"),
        (Asked(lm_head_bits=3), "--lm-head-bits 3: allowed values: 4, 8, 16"),
        (Asked(context=0), "--context 0"),
        (Asked(context=5000), "beyond the 4096 positions of Llama-2-7B"),
        (Asked(group_size=48), "--group-size"),
    ],
)
def test_what_cannot_be_asked_for(asked: Asked, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(find_model("Llama-2-7B"), load_recipe(LAPTOP), asked)


def test_a_recipe_that_leaves_the_memory_to_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_edge.fit.device.memory_figures", lambda: None)
    with pytest.raises(ConfigError, match=r"recipe cuda takes the memory .* no NVIDIA GPU"):
        device_figures(load_recipe("cuda"))
    found = GpuMemory(total=80 * GB, peak_bandwidth=3 * 10**12)
    monkeypatch.setattr("awq_edge.fit.device.memory_figures", lambda: found)
    device = device_figures(load_recipe("cuda"))
    assert (device.memory, device.bandwidth, device.bandwidth_source) == (80 * GB, 3e12, "driver")
    measured = device_figures(load_recipe("cpu"))
    assert measured.memory_source == "measured" and measured.bandwidth and measured.usable > 0
    assert device_figures(load_recipe("cpu"), measure=False).bandwidth is None


def test_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_edge.fit.device.memory_figures", lambda: None)
    models = [find_model(name) for name in ("Llama-2-13B", "OPT-125M")]
    recipes = [load_recipe(name) for name in (LAPTOP, AGX, "cuda")]
    table = fit_all(models, recipes, Asked(context=4096))
    assert set(table.skipped) == {"cuda"}
    cells = {(cell.model, cell.recipe): cell for cell in table.cells}
    assert len(cells) == 4
    for (model, recipe), cell in cells.items():
        context = min(4096, find_model(model).decoder.max_positions)
        report = fit(find_model(model), load_recipe(recipe), Asked(context=context))
        assert (cell.verdict, cell.total_bytes) == (report.verdict, total(report))
        assert cell.max_context == report.max_context


def test_changes_come_to_what_their_options_say() -> None:
    model, recipe = find_model("Llama-2-13B"), load_recipe(LAPTOP)
    assessor = Assessor(model, recipe, device_figures(recipe))
    settings = dataclasses.replace(assessor.default_settings(), bits=16, lm_head_bits=16)
    for change in find_changes(assessor, assessor.predict(settings)):
        words = change.options.split()
        options = dict(zip(words[0::2], words[1::2], strict=True))
        asked = Asked(
            bits=int(options.get("--bits", 16)),
            lm_head_bits=int(options.get("--lm-head-bits", 16)),
            context=int(options.get("--context", settings.context)),
            kv_dtype="int8" if "--kv-dtype" in options else "float16",
        )
        assert total(fit(model, recipe, asked)) == change.total_bytes, change
