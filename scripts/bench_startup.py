"""Measure how soon `awq-edge --help` answers: wall time of the whole process.

python scripts/bench_startup.py [--repeats 20] [--json docs/results/startup.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.cpu import describe_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    command = [str(Path(sys.executable).with_name("awq-edge")), "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # byte-compiles, fills caches
    load = os.getloadavg()[0]
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - start)
    cpu = describe_cpu()
    report = {
        "what": "wall seconds of `awq-edge --help`",
        "median": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "seconds": seconds,
        "load_average_before": load,
        "machine": {"cpu": cpu.name, "cores": cpu.cores, "power_mode": cpu.power_mode},
        "versions": versions(("typer",)),
        "commit": source_commit(),
    }
    print(
        f"awq-edge --help: {report['median']:.3f} s, median of {len(seconds)} "
        f"({report['lowest']:.3f} to {report['highest']:.3f})"
    )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
