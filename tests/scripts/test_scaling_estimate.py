"""scripts/scaling_estimate.py counts what the quantizer does."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

import awq_edge
from awq_edge.model.archs import decoder_from_config
from awq_edge.quantizer import loop
from awq_edge.quantizer.blocks.stream import CalibrationStream
from tests.quantizer.conftest import build_model, save_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "scaling_estimate.py"
# The search stops short of the candidates that are hopeless; a group for which no scale is better
# than plain rounding has its clips searched again.
WORK_TOLERANCE = (0.5, 1.4)


@pytest.fixture(scope="module")
def script() -> Any:
    if not SCRIPT.exists():
        pytest.skip(reason="scripts/ is not beside the tests")
    spec = importlib.util.spec_from_file_location("scaling_estimate", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def report(script: Any, capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    script.main([*flags, "--json", "-"])
    return json.loads(capsys.readouterr().out)


def test_the_sizes_of_llama_405b(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand, from its configuration."""
    found = report(script, capsys, "--shape", "llama-3.1-405b", "--budget", "16 GiB")
    hidden, inner, kv = 16384, 53248, 8 * 128
    parameters = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden
    sizes = found["sizes"]
    assert sizes["parameters"] == parameters == 3_187_703_808
    assert sizes["statistics"] == 4 * (3 * hidden**2 + inner**2)
    assert sizes["hidden"] == 4 * 128 * 512 * hidden
    # What its name says, in billions of parameters of 2 bytes each.
    assert sizes["model"] == pytest.approx(2 * 405.85e9, rel=1e-4)
    assert set(found["samples_by_input"].values()) == {None}


def test_a_cluster_is_never_slower_with_more_machines(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--shape", "llama-3.1-405b", "--method", "awq+gptq", "--budget", "16 GiB"]
    runs = report(script, capsys, *flags)["runs"]
    hours = [run["seconds"] for run in runs]
    assert hours == sorted(hours, reverse=True)
    assert runs[1]["bottleneck"] == "the workers"
    assert runs[-1]["bottleneck"] == "the driver's forward pass"
    # And no faster than the driver alone.
    fast = report(script, capsys, *flags, "--gpus", "1000", "--float32-tflops", "1e6")
    assert fast["runs"][0]["bottleneck"] == "the driver's shipping"


def test_the_table_names_every_run(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--shape", "llama-3.1-70b", "--gpus", "0", "8"])
    told = capsys.readouterr().out
    assert "| local | " in told and "| ray, 8 GPUs | " in told


def test_operations_are_those_that_torch_counts(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block of a small model, its forward pass and the work on it."""
    settings = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    model = save_model(build_model("llama", **settings), tmp_path / "model")
    counted: dict[str, int] = {}
    work, forward = loop.quantize_block, CalibrationStream._forward

    def counting(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            with FlopCounterMode(display=False) as counter:
                result = function(*arguments, **options)
            counted[name] = counted.get(name, 0) + counter.get_total_flops()
            return result

        return call

    monkeypatch.setattr(loop, "quantize_block", counting("work", work))
    monkeypatch.setattr(CalibrationStream, "_forward", counting("forward", forward))
    samples, length, budget = 8, 64, 2 << 30
    awq_edge.quantize(
        model, tmp_path / "out", awq_edge.load_recipe(method="awq", samples=samples, length=length)
    )
    decoder = decoder_from_config(json.loads((model / "config.json").read_text()))
    expected = script.count_work(decoder, samples * length, length, budget, "awq")
    ratio = counted["work"] / (expected.search + expected.clip + expected.errors)
    assert WORK_TOLERANCE[0] < ratio < WORK_TOLERANCE[1]
    # torch counts neither a CPU's attention nor G's products, which are in place.
    attention = 4 * length * decoder.num_heads * decoder.head_size * samples * length
    assert counted["forward"] == expected.forward - attention
