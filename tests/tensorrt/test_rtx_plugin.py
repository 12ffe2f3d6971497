"""Engines with both plugins, built ahead of time by TensorRT-RTX on a machine without a GPU.

Building is all that can be tested here: TensorRT-RTX reads an engine back only where a GPU is.
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

import onnx
import pytest

from awq_edge.kernels.kernels import ENVIRONMENT_VARIABLE
from awq_edge.tensorrt.contract import CACHED_ATTENTION, W4A16_LINEAR
from awq_edge.tensorrt.op_contract import Number

from .conftest import CppPlugin
from .plan_fields import fields_of
from .plugin_build import tensorrt_major
from .plugin_graph import ATTENTION, CONTEXT, HIDDEN, Change, build_model, linear_attributes

ROOT = Path(__file__).resolve().parents[2]
SMS = (86, 89, 120)
_TIMEOUT_S = 300
# The TensorRT whose registry and logger finder are laid out as TensorRT-RTX 1.7's.
_LAYOUT_MAJOR = 11

# What differs from the plain graph, which has three linears, an fp16 cache and a rotation.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"activations": "bfloat16"},
    "merged": {"attention": {"merged_qkv": 1, "qk_norm": 1, "window": 64, "soft_cap": 30.0}},
    "int8_cache": {"attention": {"int8_cache": 1}},
}

# name -> (what is different, what the plugin says)
REFUSALS: dict[str, tuple[dict[str, Change], str]] = {
    "bits": (
        {"linear": Change(attributes={"bits": 5})},
        "/o/W4A16Linear: W4A16Linear: bits is 5, must be 3, 4 or 8",
    ),
    "missing": (
        {"linear": Change(drop=["group_size"])},
        "/o/W4A16Linear: W4A16Linear: the attribute group_size is missing",
    ),
    "layout": (
        {"linear": Change(attributes={"layout_version": 0})},
        "W4A16Linear: layout_version is 0, must be 1",
    ),
    "float_attribute": (
        {"linear": Change(attributes={"bits": 4.0})},
        "W4A16Linear: bits is 1 x FLOAT32, must be one INT32 or INT64",
    ),
    "no_bias": (
        {"linear": Change(without=["bias"])},
        "W4A16Linear: 3 inputs, must be 4 (x, qweight, scales, bias) for bits=4",
    ),
    "dtype": (
        {"linear": Change(dtype={"scales": "float32"})},
        "W4A16Linear: scales is float32, must be float16",
    ),
    "shape": (
        {"linear": Change(shape={"qweight": (8, 2, 256)})},
        "W4A16Linear: qweight is [8, 2, 256], must be [8, 1, 256] = [tiles, blocks, words] for "
        "bits=4, group_size=64, in_features=128, out_features=128",
    ),
    "cache_shape": (
        {"cache": Change(shape={"past_value": ["B", 3, CONTEXT, 32]})},
        f"CachedAttention: past_value is [-1, 3, {CONTEXT}, 32], must be [batch, 2, {CONTEXT}, 32]",
    ),
    "past_length": (
        {"cache": Change(dtype={"past_length": "int32"})},
        "CachedAttention: past_length is int32, must be int64",
    ),
}

Build = Callable[[list[dict[str, Any]]], tuple[list[dict[str, Any]], str]]


@pytest.fixture(scope="module", params=["python", "load", "init"])
def build(request: pytest.FixtureRequest, recording_kernels: Path) -> Build:
    """Builds jobs with one of the plugins; returns their results and what went to stderr.

    The C++ one is loaded by TensorRT's registry or registers itself.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip(reason="needs tensorrt-rtx, which has wheels for Linux on x86-64 and Windows")
    library = ""
    if request.param != "python":
        if request.param == "init":
            _needs_rtx_layout()
        built: CppPlugin = request.getfixturevalue("cpp_plugin")
        library = str(built.library)
    cache = request.getfixturevalue("tmp_path_factory").mktemp("cache")

    def run(jobs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("tensorrt_build.py"), library, request.param],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "AWQ_EDGE_CACHE": str(cache),
                ENVIRONMENT_VARIABLE: str(recording_kernels),
            },
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return run


def _needs_rtx_layout() -> None:
    if tensorrt_major() < _LAYOUT_MAJOR:
        pytest.skip(reason=f"needs the headers of TensorRT {_LAYOUT_MAJOR}")


def _job(folder: Path, name: str, model: onnx.ModelProto, **others: Any) -> dict[str, Any]:
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return {"model": str(path), "plan": str(folder / f"{name}.plan"), "sm": list(SMS), **others}


def test_engines_are_built_and_keep_the_fields(build: Build, tmp_path: Path) -> None:
    jobs = [_job(tmp_path, name, build_model(**variant)) for name, variant in VARIANTS.items()]
    results, errors = build(jobs)
    for (name, variant), job, result in zip(VARIANTS.items(), jobs, results, strict=True):
        assert result["built"], (name, result["log"], errors)
        plan = Path(job["plan"]).read_bytes()
        attention = CACHED_ATTENTION.read({**ATTENTION, **variant.get("attention", {})})
        assert fields_of(plan, CACHED_ATTENTION) == [attention], name
        widths = [256] if attention["merged_qkv"] else [HIDDEN, 64, 64]
        linears = [linear_attributes(HIDDEN, width, has_zeros=1) for width in widths]
        linears.append(linear_attributes(HIDDEN, HIDDEN, has_bias=1))
        expected = [W4A16_LINEAR.read(linear) for linear in linears]
        assert _sorted(fields_of(plan, W4A16_LINEAR)) == _sorted(expected), name


def _sorted(nodes: list[dict[str, Number]]) -> list[list[tuple[str, Number]]]:
    return sorted(sorted(node.items()) for node in nodes)


@pytest.mark.parametrize("build", ["python", "load"], indirect=True)
def test_profiles_of_decode_and_prefill(build: Build, tmp_path: Path) -> None:
    job = _job(tmp_path, "profiles", build_model(), profiles=["decode", "prefill", "both"])
    (result,), errors = build([job])
    assert result["built"], (result["log"], errors)


@pytest.mark.parametrize("build", ["python", "load"], indirect=True)
def test_wrong_nodes_are_refused_with_the_reason(build: Build, tmp_path: Path) -> None:
    jobs = [_job(tmp_path, name, build_model(**changes)) for name, (changes, _) in REFUSALS.items()]
    results, errors = build(jobs)
    sections = errors.split("--- ")[1:]
    for name, result, section in zip(REFUSALS, results, sections, strict=True):
        assert not result["parsed"], name
        # The Python plugin can only write to stderr; the C++ one has TensorRT's logger.
        said = section + "\n".join(result["log"])
        assert REFUSALS[name][1] in said, said


@pytest.mark.parametrize("build", ["load"], indirect=True)
def test_cpp_refusals_go_to_tensorrts_logger(build: Build, tmp_path: Path) -> None:
    _needs_rtx_layout()
    changes, message = REFUSALS["bits"]
    (result,), errors = build([_job(tmp_path, "bits", build_model(**changes))])
    assert f"ERROR: {message}" in result["log"]
    assert message not in errors
