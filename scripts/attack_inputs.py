"""Damage sound inputs of every kind, run commands on them, and report what ends as it must not.

    python scripts/attack_inputs.py --cases 5000

Cases are numbered: the same number is the same damage. --first says where to begin, so that a case
that failed is run alone by `--first N --cases 1`. Exit code 1 where there is a defect.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.attacks.artifacts import make_artifacts
from tests.attacks.cases import TARGETS, Outcome, run_case

_SAMPLE = 40  # every one of so many cases is a process of its own, not a fork


def main() -> None:
    """Run the cases and print the defects, then a summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--artifacts", type=Path, help="keep the sound inputs here")
    parser.add_argument("--only", help="one kind of input")
    parser.add_argument("--verbose", action="store_true", help="every outcome, not defects alone")
    arguments = parser.parse_args()
    names = [t.name for t in TARGETS if arguments.only in (None, t.name)]
    scratch = Path(tempfile.mkdtemp(prefix="awq-edge-attacks-"))
    artifacts = arguments.artifacts or scratch / "artifacts"
    try:
        if not artifacts.exists():
            make_artifacts(artifacts)
        seeds = range(arguments.first, arguments.first + arguments.cases)
        totals: collections.Counter[str] = collections.Counter()
        with ProcessPoolExecutor(arguments.workers, initializer=_load) as pool:
            jobs = [
                pool.submit(
                    run_case, seed, artifacts, scratch, names, in_process=seed % _SAMPLE != 0
                )
                for seed in seeds
            ]
            for job in jobs:
                outcome = job.result()
                totals[outcome.problem or f"exit {outcome.code}"] += 1
                if outcome.problem or arguments.verbose:
                    _print(outcome)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    defects = sum(count for kind, count in totals.items() if kind not in ("exit 0", "exit 2"))
    print(json.dumps({"cases": arguments.cases, "defects": defects, "outcomes": dict(totals)}))
    sys.exit(1 if defects else 0)


def _load() -> None:
    """Import what the commands import once, before the forks."""
    import numpy
    import onnx
    import onnxruntime
    import tokenizers
    import torch
    import transformers

    import awq_edge.cli
    import awq_edge.pipeline

    modules = (numpy, onnx, onnxruntime, tokenizers, torch, transformers)
    assert all(modules) and awq_edge.cli and awq_edge.pipeline


def _print(outcome: Outcome) -> None:
    last = outcome.text.strip().splitlines()[-1:] or [""]
    print(
        f"{outcome.problem or outcome.code} [{outcome.seconds:.1f} s] {outcome.case}\n"
        f"    {ascii(last[0])[:300]}",
        flush=True,
    )


if __name__ == "__main__":
    main()
