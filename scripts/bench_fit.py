"""Compare what `awq-edge fit` predicts with the peak memory of a process that runs the model.

    python scripts/bench_fit.py [--shape tinyllama-1.1b] [--repeats 3] [--json FILE]

Predicts from config.json alone, exports a random checkpoint of the shape for the CPU, and runs it
in a process of its own: a prefill of nearly the whole context, the rest token by token, and every
mapped page of the weight file read, so that it counts. The goal: predicted and measured peak within
5 % of weights and KV cache of each other. The 1.1 B shape needs 3 GB of disk.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from awq_edge.artifacts.directories import Bundle
from awq_edge.process import children
from awq_edge.runtime.memory import read_process_memory
from awq_edge.runtime.session import SessionOptions

NEEDED_BYTES = 3_000_000_000
DECODED = 32  # tokens behind the prefill
GOAL = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", default="tinyllama-1.1b", help="of random_checkpoint.py")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: physical cores")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_here(arguments.child, arguments.threads)
        return
    result = measure(arguments.shape, arguments.repeats, arguments.threads, arguments.folder)
    print_result(result)
    if arguments.json:
        from bench_export import machine

        report = {"machine": machine(), **result}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(shape: str, repeats: int, threads: int | None, folder: Path) -> dict[str, Any]:
    """Prediction and peaks of one shape."""
    from random_checkpoint import write_random_checkpoint

    from awq_edge.artifacts.outputs import require_disk
    from awq_edge.exporter.bundle import export_checkpoint
    from awq_edge.fit.fit import Asked, fit
    from awq_edge.fit.models import find_model
    from awq_edge.recipe.recipes import load_recipe

    require_disk(folder, NEEDED_BYTES, f"the benchmark of {shape}")
    with tempfile.TemporaryDirectory(prefix="bench-fit-", dir=folder) as work:
        checkpoint, out = Path(work) / "checkpoint", Path(work) / "bundle"
        write_random_checkpoint(shape, checkpoint)
        predicted = fit(find_model(str(checkpoint)), load_recipe("cpu"), Asked())
        export_checkpoint(checkpoint, out, load_recipe("cpu"), model_name=shape)
        command = [sys.executable, __file__, "--child", str(out)]
        if threads is not None:
            command += ["--threads", str(threads)]
        runs = [json.loads(children.output_of(command)) for _ in range(repeats)]
    parts = predicted.predicted_bytes
    resident = parts.weights + parts.kv_cache
    errors = [(parts.total - run["peak_rss_bytes"]) / resident for run in runs]
    return {
        "shape": shape,
        "context": predicted.settings.context,
        "predicted_bytes": parts.model_dump(),
        "runs": runs,
        "error_of_weights_and_kv_cache": errors,
        "goal": GOAL,
        "within_goal": all(abs(error) <= GOAL for error in errors),
    }


def run_here(path: Path, threads: int | None) -> None:
    """Fill the context in this process; print its peak as JSON."""
    from awq_edge.runtime.backends import open_session

    bundle = Bundle.open(path, verify=False)
    session = open_session(bundle, SessionOptions(threads=threads))
    ids = [(7919 * number) % bundle.manifest.vocab_size for number in range(session.context)]
    session.prefill(ids[:-DECODED])
    for token in ids[-DECODED:]:
        session.decode(token)
    read_mapped(path / bundle.manifest.weights)
    memory = read_process_memory()
    figures = {
        "peak_rss_bytes": memory.peak_rss,
        "rss_bytes": memory.rss,
        "anonymous_bytes": memory.anonymous,
        "file_backed_bytes": memory.file_backed,
    }
    print(json.dumps(figures))
    session.close()


def read_mapped(file: Path) -> None:
    """Read a byte of every page of a file that this process maps: a prompt uses some rows of the
    embedding, and the prediction counts all of them."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(str(file.resolve())):
            begin, end = (int(word, 16) for word in re.split(r"[- ]", line)[:2])
            for page in range(begin, end, mmap.PAGESIZE):
                ctypes.string_at(page, 1)


def print_result(result: dict[str, Any]) -> None:
    predicted = result["predicted_bytes"]
    print(f"{result['shape']}, context {result['context']}")
    for part, size in predicted.items():
        print(f"  predicted {part}: {size / 1e6:,.0f} MB")
    for run, error in zip(result["runs"], result["error_of_weights_and_kv_cache"], strict=True):
        print(
            f"  measured peak: {run['peak_rss_bytes'] / 1e6:,.0f} MB: {error:+.1%} of weights + KV"
        )
    print(f"  within {result['goal']:.0%}: {'yes' if result['within_goal'] else 'no'}")


if __name__ == "__main__":
    main()
