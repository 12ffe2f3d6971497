"""Measure `awq-edge quantize`: seconds of a block by phase, and peak memory.

    python scripts/bench_quantize.py --shape tinyllama-1.1b --blocks 3 [--device cuda] [--json FILE]

Makes a random float16 model of a few blocks of each shape, with the embedding and the tokenizer of
the demo model, quantizes it in a process of its own, and deletes both. The whole model is
extrapolated: its number of blocks times the median block (the first one, which warms up, left out
where there are three or more). What is outside the blocks is measured with them: one embedding,
start and end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from random_checkpoint import SHAPES, write_random_model

from awq_edge.artifacts.outputs import require_disk
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.cpu import describe_cpu
from awq_edge.model.files import TOKENIZER_FILES
from awq_edge.model.hub import resolve_model
from awq_edge.process import children

PACKAGES = ("numpy", "torch", "transformers")
BLOCK_PARAMETERS = {"tinyllama-1.1b": 44e6, "llama-2-7b": 203e6, "llama-2-70b": 856e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), required=True)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--method", action="append", help="default: refined")
    parser.add_argument("--effort", help="of method refined; default: the recipe's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--budget", help="statistics_budget_bytes of the recipe, such as 2 GiB")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        quantize_here(*arguments.child, arguments)
        return
    results = [result for shape in arguments.shape for result in measure_shape(shape, arguments)]
    report = {"machine": machine(arguments.device), "results": results}
    print_table(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    from awq_edge.device.torch_device import device_name, torch_device

    cpu = describe_cpu()
    return {
        "device": device_name(torch_device(device)),
        "cpu": cpu.name,
        "cores": cpu.cores,
        "memory_bytes": cpu.memory_bytes,
        "versions": versions(PACKAGES),
        "commit": source_commit(),
    }


def measure_shape(shape: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One result for each method."""
    # The model, its finished blocks and its shards.
    needed = int(4 * BLOCK_PARAMETERS[shape] * arguments.blocks + 2e9)
    require_disk(arguments.folder, needed, f"the benchmark of {shape}")
    with tempfile.TemporaryDirectory(prefix="bench-quantize-", dir=arguments.folder) as work:
        model = Path(work) / "model"
        write_random_model(shape, model, arguments.blocks)
        for name in TOKENIZER_FILES:
            if (source := resolve_model("demo") / name).exists():
                shutil.copyfile(source, model / name)
        results = []
        for method in arguments.method or ["refined"]:
            out = Path(work) / "out"
            command = [sys.executable, __file__, *sys.argv[1:]]
            command += ["--child", str(model), str(out), method]
            start = time.perf_counter()
            printed = children.output_of(command)
            seconds = time.perf_counter() - start
            result = summary(shape, method, arguments, json.loads(printed), seconds)
            print(json.dumps({k: v for k, v in result.items() if k != "blocks"}), file=sys.stderr)
            results.append(result)
            shutil.rmtree(out)
    return results


def quantize_here(model: str, out: str, method: str, arguments: argparse.Namespace) -> None:
    """Quantize in this process; print the report."""
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from awq_edge.quantizer import quantize_checkpoint
    from awq_edge.quantizer.run_options import RunOptions
    from awq_edge.recipe.recipes import load_recipe
    from awq_edge.runtime.memory import read_process_memory

    libraries = read_process_memory().peak_rss

    recipe = load_recipe("cpu").overridden(
        {
            "quantization.method": method,
            "quantization.effort": arguments.effort,
            "quantization.statistics_budget_bytes": arguments.budget,
            "calibration.samples": arguments.samples,
            "calibration.length": arguments.length,
        }
    )
    done = quantize_checkpoint(
        Path(model), Path(out), recipe, model_name="random", run=RunOptions(arguments.device)
    )
    print(json.dumps({"libraries_bytes": libraries, **done.report.model_dump(mode="json")}))


def summary(
    shape: str,
    method: str,
    arguments: argparse.Namespace,
    report: dict[str, Any],
    process_seconds: float,
) -> dict[str, Any]:
    """The figures of one run."""
    blocks = report["blocks"]
    steady = blocks[1:] if len(blocks) >= 3 else blocks
    block = statistics.median(b["seconds"] for b in steady)
    outside = report["seconds"] - sum(b["seconds"] for b in blocks)
    layers = SHAPES[shape]["num_hidden_layers"]
    phases = steady[0]["seconds_by_phase"]
    return {
        "shape": shape,
        "method": method,
        "effort": arguments.effort,
        "samples": arguments.samples,
        "length": arguments.length,
        "blocks_run": len(blocks),
        "layers": layers,
        "block_seconds": block,
        "block_seconds_by_phase": {
            name: statistics.median(b["seconds_by_phase"].get(name, 0.0) for b in steady)
            for name in phases
        },
        "outside_seconds": outside,
        "model_seconds": layers * block + outside,
        "process_seconds": process_seconds,
        "peak_host_bytes": report["peak_host_bytes"],
        "libraries_bytes": report["libraries_bytes"],
        "peak_cuda_bytes": report["peak_cuda_bytes"],
        "sampled_inputs": blocks[0]["sampled_inputs"],
        "threads": report["threads"],
        "block_float32_bytes": int(4 * BLOCK_PARAMETERS[shape]),
        "hidden_states_bytes": 4
        * arguments.samples
        * arguments.length
        * SHAPES[shape]["hidden_size"],
        "blocks": [{k: b[k] for k in ("seconds", "seconds_by_phase")} for b in blocks],
    }


def print_table(report: dict[str, Any]) -> None:
    """The figures as a Markdown table."""
    facts = report["machine"]
    print(f"{facts['device']}, {facts['cores']} cores, commit {facts['commit']}")
    print("| shape | method | block | by phase | model | peak host | peak GPU |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for r in report["results"]:
        phases = ", ".join(f"{k} {v:.2f}" for k, v in r["block_seconds_by_phase"].items())
        cuda = "" if r["peak_cuda_bytes"] is None else f"{r['peak_cuda_bytes'] / 1e9:.1f} GB"
        print(
            f"| {r['shape']} | {r['method']} | {r['block_seconds']:.2f} s | {phases} "
            f"| {r['layers']} blocks: {r['model_seconds']:.0f} s "
            f"| {r['peak_host_bytes'] / 1e9:.1f} GB | {cuda} |"
        )


if __name__ == "__main__":
    main()
