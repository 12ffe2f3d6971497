"""Measure what a model is calibrated on, by the KL divergence on several texts from 16 bits.

    python scripts/bench_calibration.py MODEL --out DIR --text wiki=test.txt --text code=code.txt \
        --calibration self --calibration packaged --calibration valid.txt --device cuda

All calibrations are measured at once, one process each: seconds are those of a busy machine. MODEL
as `scripts/compare_quantizers.py` permutes it, where its weights come from a 4-bit file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import awq_edge
from awq_edge.artifacts.directories import atomic_file
from awq_edge.evaluate.divergence_report import evaluate_divergence


def main() -> int:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if len(arguments.calibration) == 1:
        measure(arguments)
        return 0
    rest = [word for word in sys.argv[1:]]
    for source in arguments.calibration:
        place = rest.index(source)
        del rest[place - 1 : place + 1]
    command = [sys.executable, __file__, *rest, "--calibration"]
    running = [subprocess.Popen([*command, source]) for source in arguments.calibration]
    return max([process.wait() for process in running])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("model", type=Path, help="directory of an unquantized model")
    add("--out", type=Path, required=True, help="folder for checkpoints and results")
    add("--text", action="append", required=True, metavar="NAME=FILE", help="scored")
    add("--calibration", action="append", required=True, help="as of `awq-edge quantize`")
    add("--method", default="refined")
    add("--bits", type=int, default=3)
    add("--group-size", type=int, default=64)
    add("--samples", type=int, default=128)
    add("--length", type=int, default=512)
    add("--max-tokens", type=int, default=8192, help="of a text")
    add("--device", default="cpu")
    add("--dtype", default="float32", help="of what is scored")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Quantize on one calibration and score every text, into a file of its own."""
    (source,) = arguments.calibration
    name = Path(source).stem
    recipe = awq_edge.load_recipe(
        method=arguments.method,
        bits=arguments.bits,
        group_size=arguments.group_size,
        samples=arguments.samples,
        length=arguments.length,
    )
    run = awq_edge.RunOptions(device=arguments.device, overwrite=True)
    checkpoint = awq_edge.quantize(
        arguments.model, arguments.out / name, recipe, calibration=source, run=run
    )
    drawn, texts = checkpoint.report.calibration, {}
    for each in arguments.text:
        key, _, file = each.partition("=")
        report = evaluate_divergence(
            *(checkpoint.path, arguments.model, Path(file)),
            window=1024,
            stride=1024,
            max_tokens=arguments.max_tokens,
            device=arguments.device,
            dtype=arguments.dtype,
        )
        texts[key] = {
            "kl": report.kl.mean,
            "standard_error": report.kl.standard_error,
            "perplexity_ratio": report.perplexity_ratio,
            "tokens": report.tokens,
        }
    row = {
        "calibration": source if drawn is None else drawn.source,
        "seconds": checkpoint.report.seconds,
        "device": checkpoint.report.device,
        "method": checkpoint.report.method,
        "bits": checkpoint.report.bits,
        "group_size": checkpoint.report.group_size,
        "versions": checkpoint.report.versions,
        "texts": texts,
    }
    with atomic_file(arguments.out / f"{name}.json") as work:
        work.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    kl = ", ".join(f"{key} {value['kl']:.4f}" for key, value in texts.items())
    print(f"{name}: {kl}; quantized in {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
