"""Builds ONNX graphs with TensorRT-RTX in a process of its own, because TensorRT can end it.

    python tensorrt_build.py LIBRARY HOW < [{"model": PATH, "sm": [86], "plan": PATH, ...}, ...]

HOW: load (the C++ plugin, by TensorRT), init (the C++ plugin, by its own function) or python.
Writes a plan for each job that builds. The last line of the output is JSON: for each job, whether
it parsed and built, and what was logged.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

from awq_edge.tensorrt.module import load_tensorrt
from awq_edge.tensorrt.plugin import register

PROFILES = {"decode": (1, 1), "prefill": (32, 512), "both": (1, 512)}


def main() -> None:
    trt: Any = load_tensorrt("tensorrt_rtx")
    plugin, how = sys.argv[1:]
    logger = _logger(trt)
    if how == "load":
        assert trt.get_plugin_registry().load_library(plugin) is not None
    if how == "init":
        for _ in range(2):
            assert ctypes.CDLL(plugin).awq_edge_plugin_init() == 0
    # Where the C++ plugin is there already, this changes nothing.
    register(trt)
    register(trt)
    print(json.dumps([_build(trt, logger, job) for job in json.load(sys.stdin)]))


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(f"{severity.name}: {message}")

    return Logger()


def _build(trt: Any, logger: Any, job: dict[str, Any]) -> dict[str, Any]:
    logger.lines.clear()
    # What the plugin itself says goes to stderr: the mark tells the jobs apart there.
    print(f"--- {job['model']}", file=sys.stderr, flush=True)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    result = {"parsed": parser.parse_from_file(job["model"]), "built": False, "log": []}
    if result["parsed"]:
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(job["sm"])
        for index, sm in enumerate(job["sm"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
        for name in job.get("profiles", ["both"]):
            config.add_optimization_profile(_profile(builder, network, PROFILES[name]))
        plan = builder.build_serialized_network(network, config)
        result["built"] = plan is not None
        if plan is not None:
            Path(job["plan"]).write_bytes(bytes(plan))
    result["log"] = list(logger.lines)
    return result


def _profile(builder: Any, network: Any, tokens: tuple[int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = []
        for count in (tokens[0], tokens[0], tokens[1]):
            shape = [1 if size < 0 else size for size in tensor.shape]
            if tensor.name == "x":
                shape[1] = count
            shapes.append(shape)
        profile.set_shape(tensor.name, *shapes)
    return profile


if __name__ == "__main__":
    main()
