"""Bundles for TensorRT in TensorRT-RTX on a machine without a GPU: parsed, and built ahead of time.

The decomposed graphs too: a parser of TensorRT 10.3 is not to be had here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import awq_edge
from awq_edge.artifacts.directories import Bundle
from awq_edge.exporter.lowerings import require_lowering
from awq_edge.exporter.spec import GraphSpec
from awq_edge.exporter.writer import WeightPlan, write_weights
from awq_edge.kernels.kernels import ENVIRONMENT_VARIABLE
from awq_edge.model.checkpoint import Checkpoint

from .conftest import Export
from .models import MAX_POSITIONS, save_quantized, save_random_model
from .test_tensorrt_parity import ASYMMETRIC, FORMS, form_recipe

ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 300
_DTYPES = {"int64": "INT64", "float16": "HALF", "bfloat16": "BF16"}
# What TensorRT-RTX's parser says of every graph with int64 inputs.
_KNOWN = ("Make sure input", "INT64")

Build = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Parses and builds jobs with the Python plugin; a library that computes nothing stands for the
    kernels."""
    import shutil

    from tests.tensorrt.plugin_build import build_recording_kernels

    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip(reason="needs tensorrt-rtx, which has wheels for Linux on x86-64 and Windows")
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip(reason="needs gcc")
    kernels = build_recording_kernels(gcc, tmp_path_factory.mktemp("kernels"))
    cache = tmp_path_factory.mktemp("cache")

    def run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("tensorrt_bundles.py")],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "AWQ_EDGE_CACHE": str(cache),
                ENVIRONMENT_VARIABLE: str(kernels),
            },
        )
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def unexpected(log: list[str]) -> list[str]:
    return [line for line in log if not any(known in line for known in _KNOWN)]


def ports(bundle: Bundle) -> dict[str, list[Any]]:
    """Inputs and outputs as TensorRT names their types; -1 where a dimension varies."""
    listed = (*bundle.manifest.inputs, *bundle.manifest.outputs)
    return {
        port.name: [
            _DTYPES[port.dtype],
            [size if isinstance(size, int) else -1 for size in port.shape],
        ]
        for port in listed
    }


def overflows_float16(model: Path) -> bool:
    return Checkpoint.open(model).decoder.architecture.overflows_float16


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [("symmetric", "float16"), ("asymmetric", "float16"), ("symmetric", "bfloat16")],
)
def test_every_architecture_parses(
    scheme: Any, dtype: str, plugin_model: Path, tmp_path: Path, export: Export, build: Build
) -> None:
    if dtype == "float16" and overflows_float16(plugin_model):
        pytest.skip(reason="needs bfloat16")
    checkpoint = save_quantized(plugin_model, tmp_path / "checkpoint", scheme=scheme)
    jobs, expected = [], {}
    for form in FORMS if scheme == "symmetric" else ASYMMETRIC:
        bundle = export(checkpoint, form_recipe(form, dtype), lm_head_bits=None)
        path = bundle.path.rename(tmp_path / form)
        expected[form] = ports(bundle)
        jobs.append({"bundle": str(path), "sm": []})
    for form, result in zip(expected, build(jobs), strict=True):
        assert result["parsed"], (form, result["log"])
        assert result["ports"] == expected[form], form
        assert not unexpected(result["log"]), form


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl"])
def test_graphs_that_take_embeddings_parse(model_type: str, tmp_path: Path, build: Build) -> None:
    source = save_random_model(tmp_path / "model", model_type)
    checkpoint = Checkpoint.open(save_quantized(source, tmp_path / "out", scheme="symmetric"))
    spec = GraphSpec(MAX_POSITIONS, 8, takes_embeddings=True)
    jobs = []
    for form in FORMS:
        recipe = form_recipe(form, "float16")
        lowered = require_lowering(recipe.runtime.backend)(checkpoint, spec, recipe)
        plan, folder = WeightPlan.of(lowered.weights), tmp_path / form
        folder.mkdir()
        write_weights(plan, folder / lowered.weights_file)
        (folder / lowered.model_file).write_bytes(lowered.render(plan))
        jobs.append({"bundle": str(folder), "sm": []})
    for form, result in zip(FORMS, build(jobs), strict=True):
        assert result["parsed"], (form, result["log"])
        assert result["ports"]["inputs_embeds"] == ["HALF", [-1, -1, 64]]
        assert ("position_ids" in result["ports"]) == (model_type == "qwen2_vl")
        assert not unexpected(result["log"]), form


def test_the_demo_model_is_built(tmp_path: Path, build: Build) -> None:
    checkpoint = tmp_path / "checkpoint"
    awq_edge.quantize("demo", checkpoint, awq_edge.load_recipe(method="rtn", scheme="symmetric"))
    jobs, weights = [], []
    for form in FORMS:
        bundle = awq_edge.export(
            checkpoint, tmp_path / form, form_recipe(form, "float16").asking(context=256)
        )
        weights.append(sum(bundle.manifest.part_bytes.values()))
        jobs.append({"bundle": str(bundle.path), "sm": [89]})
    for form, size, result in zip(FORMS, weights, build(jobs), strict=True):
        # Weights that were folded into float16 would be twice what the bundle has, and more.
        assert size < result["engine"] < 2.5 * size, (form, result["log"])
        assert not unexpected(result["log"]), form
