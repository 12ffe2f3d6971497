"""The prediction from config.json against a bundle of the same model, and against what it takes."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.errors import ModelError
from awq_edge.fit.fit import Asked, fit
from awq_edge.fit.models import find_model
from awq_edge.fit.planner import BundleSizes
from awq_edge.recipe.recipes import load_recipe
from awq_edge.recipe.runtimes import require_runtime
from awq_edge.runtime.memory import packing_bytes, predict_memory

pytest.importorskip("transformers", reason="needs the [host] extra")

SCRIPT = Path(__file__).with_name("measured_session.py")
# Of weights and KV cache: what the issue of `fit` asks for.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("fit") / "demo"
    return awq_edge.export("demo", out, awq_edge.load_recipe("cpu", method="rtn"))


def test_the_prediction_is_that_of_the_bundle(demo_bundle: Bundle) -> None:
    manifest = demo_bundle.manifest
    report = fit(find_model("demo"), load_recipe("cpu"), Asked())
    predicted = predict_memory(manifest, manifest.context)
    assert report.predicted_bytes.model_dump() == {
        "weights": predicted.weights,
        "kv_cache": predicted.kv_cache,
        "activations": predicted.activations,
        "overhead": predicted.overhead,
        "total": predicted.total,
    }
    parts = {**manifest.part_bytes, "packing": packing_bytes(manifest)}
    assert report.weight_bytes == parts and sum(parts.values()) == predicted.weights
    assert parts["packing"] > 0
    assert report.bytes_per_token == manifest.bytes_per_token
    settings = report.settings
    assert (settings.context, settings.prefill_chunk) == (manifest.context, manifest.prefill_chunk)
    assert (settings.bits, settings.lm_head_bits) == (manifest.bits, manifest.lm_head_bits)
    with pytest.raises(ModelError, match="is a bundle, whose sizes are what they are"):
        find_model(str(demo_bundle.path))


def test_the_manifest_has_what_is_predicted(demo_bundle: Bundle) -> None:
    """Every figure of `BundleSizes` has its counterpart, under the same name."""
    assert {field.name for field in fields(BundleSizes)} <= set(
        type(demo_bundle.manifest).model_fields
    )


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or mmap.PAGESIZE != 4096,
    reason="needs /proc and pages of 4 KiB",
)
def test_weights_and_cache_are_as_measured(demo_bundle: Bundle) -> None:
    """Within 5 % of weights and KV cache, in a process that has its libraries already."""
    command = [sys.executable, str(SCRIPT), str(demo_bundle.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    grown = json.loads(run.stdout)["grown"]
    single = demo_bundle.manifest.model_copy(update={"prefill_chunk": 1})
    predicted = predict_memory(single, single.context)
    expected = predicted.total - require_runtime("onnxruntime").memory.process
    assert abs(grown - expected) < TOLERANCE * (predicted.weights + predicted.kv_cache)
