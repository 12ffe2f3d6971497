"""Measure `awq-edge export`: seconds and peak memory, from an AutoAWQ checkpoint to a bundle.

    python scripts/bench_export.py [--shape tinyllama-1.1b] [--shape llama-2-7b] [--json FILE]

Makes a random checkpoint of each shape, exports it in a process of its own several times, and
deletes both. The 7 B shape needs 9 GB of disk.
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

from random_checkpoint import SHAPES, write_random_checkpoint

from awq_edge.artifacts.outputs import require_disk
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.cpu import describe_cpu
from awq_edge.process import children

PACKAGES = ("numpy", "onnx", "onnx-graphsurgeon")
# Checkpoint and bundle of the larger shape.
NEEDED_BYTES = {"tinyllama-1.1b": 2_000_000_000, "llama-2-7b": 9_000_000_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        export_here(*arguments.child)
        return
    results = [
        measure(shape, arguments.repeats, arguments.folder)
        for shape in arguments.shape or ["tinyllama-1.1b", "llama-2-7b"]
    ]
    report = {"machine": machine(), "results": results}
    print_table(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = describe_cpu()
    return {
        "cpu": cpu.name,
        "cores": cpu.cores,
        "memory_bytes": cpu.memory_bytes,
        "power_mode": cpu.power_mode,
        "versions": versions(PACKAGES),
        "commit": source_commit(),
    }


def measure(shape: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Seconds and peak resident bytes of `repeats` exports of one shape."""
    require_disk(folder, NEEDED_BYTES[shape], f"the benchmark of {shape}")
    with tempfile.TemporaryDirectory(prefix="bench-export-", dir=folder) as work:
        checkpoint, bundle = Path(work) / "checkpoint", Path(work) / "bundle"
        checkpoint_bytes = write_random_checkpoint(shape, checkpoint)
        runs = []
        for _ in range(repeats):
            command = [sys.executable, __file__, "--child", str(checkpoint), str(bundle)]
            start = time.perf_counter()
            printed = children.output_of(command)
            runs.append({"process_seconds": time.perf_counter() - start, **json.loads(printed)})
            shutil.rmtree(bundle)
    return {
        "shape": shape,
        "checkpoint_bytes": checkpoint_bytes,
        "bundle_bytes": runs[0]["bundle_bytes"],
        "seconds": statistics.median(run["process_seconds"] for run in runs),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "runs": runs,
    }


def export_here(checkpoint: Path, out: Path) -> None:
    """Export in this process; print what it took as JSON."""
    from awq_edge.exporter.bundle import export_checkpoint
    from awq_edge.recipe.recipes import load_recipe
    from awq_edge.runtime.memory import read_process_memory

    start = time.perf_counter()
    bundle = export_checkpoint(checkpoint, out, load_recipe("cpu"), model_name=checkpoint.name)
    figures = {
        "export_seconds": time.perf_counter() - start,
        "peak_rss_bytes": read_process_memory().peak_rss,
        "bundle_bytes": sum(entry.size for entry in bundle.manifest.files.values()),
    }
    print(json.dumps(figures))


def print_table(report: dict[str, Any]) -> None:
    """The figures as a Markdown table."""
    facts = report["machine"]
    print(f"{facts['cpu']}, {facts['cores']} cores, commit {facts['commit']}, {facts['versions']}")
    print("| shape | checkpoint | bundle | seconds (median; all) | peak RSS |")
    print("| --- | --- | --- | --- | --- |")
    for result in report["results"]:
        every = ", ".join(f"{run['process_seconds']:.1f}" for run in result["runs"])
        print(
            f"| {result['shape']} | {result['checkpoint_bytes'] / 1e9:.2f} GB "
            f"| {result['bundle_bytes'] / 1e9:.2f} GB | {result['seconds']:.1f} ({every}) "
            f"| {result['peak_rss_bytes'] / 1e6:,.0f} MB |"
        )


if __name__ == "__main__":
    main()
