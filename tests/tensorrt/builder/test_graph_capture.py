"""Engines of TensorRT for RTX are built so that a CUDA graph can hold a run of them."""

from __future__ import annotations

from typing import Any

import pytest

from awq_edge.tensorrt.builder.job import BuildJob
from awq_edge.tensorrt.builder.worker import _config
from awq_edge.tensorrt.engines.loading import TensorrtLog
from awq_edge.tensorrt.module import load_tensorrt


def test_memory_of_a_run_is_the_sessions() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs tensorrt-rtx")
    trt: Any = load_tensorrt("tensorrt_rtx")
    job = BuildJob(
        module="tensorrt_rtx",
        graph="",
        engine="",
        sm="SM89",
        plugins=False,
        profiles=(),
        inputs=(),
        outputs=(),
        timing_cache=None,
        workspace_bytes=None,
    )
    builder = trt.Builder(TensorrtLog(trt).logger)
    assert _config(trt, builder, job).get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
