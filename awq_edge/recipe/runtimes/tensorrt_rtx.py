"""TensorRT for RTX, on laptops and PCs: as TensorRT, but for what is replaced here."""

from __future__ import annotations

from dataclasses import replace

from awq_edge.recipe.runtimes import tensorrt
from awq_edge.recipe.runtimes.base import EngineKind, NativeLayers

RUNTIME = replace(
    tensorrt.RUNTIME,
    name="tensorrt-rtx",
    lowering="awq_edge.exporter.lower_tensorrt_rtx:build",
    checks="awq_edge.exporter.checks_tensorrt:check_rtx",
    native=NativeLayers(
        activation_dtypes=("float16", "bfloat16", "float32"),
        first_version="1.0",
    ),
    engine=EngineKind("TensorRT for RTX", "tensorrt_rtx", "tensorrt-rtx", ahead_of_time=True),
)
