"""Builds bundles with TensorRT-RTX in a process of its own, because TensorRT can end it.

    python tensorrt_bundles.py < [{"bundle": PATH, "sm": [89]}, ...]

sm: empty to parse only. The last line of the output is JSON: for each job whether it parsed, the
network's inputs and outputs, the bytes of the engine (0: none), and errors and warnings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from awq_edge.tensorrt.module import load_tensorrt
from awq_edge.tensorrt.plugin import register


def main() -> None:
    trt: Any = load_tensorrt("tensorrt_rtx")
    logger = _logger(trt)
    register(trt)
    print(json.dumps([_build(trt, logger, job) for job in json.load(sys.stdin)]))


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.lines.append(f"{severity.name}: {message}")

    return Logger()


def _build(trt: Any, logger: Any, job: dict[str, Any]) -> dict[str, Any]:
    logger.lines.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(Path(job["bundle"]) / "model.onnx"))
    result = {"parsed": parsed, "engine": 0, "ports": {}}
    if parsed:
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        result["ports"] = {t.name: [t.dtype.name, list(t.shape)] for t in tensors}
    if parsed and job["sm"]:
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(job["sm"])
        for index, sm in enumerate(job["sm"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
        for tokens in ((1, 1), (1, 64)):
            config.add_optimization_profile(_profile(builder, network, tokens))
        plan = builder.build_serialized_network(network, config)
        result["engine"] = 0 if plan is None else plan.nbytes
    result["log"] = list(logger.lines)
    return result


def _profile(builder: Any, network: Any, tokens: tuple[int, int]) -> Any:
    """One sequence, `tokens` at least and at most."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = []
        for count in (tokens[0], tokens[0], tokens[1]):
            shape = [1 if size < 0 else size for size in tensor.shape]
            if tensor.name == "input_ids":
                shape[1] = count
            shapes.append(shape)
        profile.set_shape(tensor.name, *shapes)
    return profile


if __name__ == "__main__":
    main()
