"""Perplexity of the demo model with its output layer in 16, 8 and 4 bits.

    python scripts/bench_lm_head.py --held-out held_out.txt --json FILE

The blocks are INT4, the same in the rows of one method. "at export" is what the exporter makes
of an output layer that the checkpoint has in 16 bits: rounded to nearest in groups of 32. The
others are quantized with the final norm's output as their input. Scored through the onnxruntime
session at accuracy level 0.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import awq_edge
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.cpu import describe_cpu
from awq_edge.evaluate.report import evaluate_perplexity

GROUP_SIZE = 128
METHODS = ("awq", "awq+gptq")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, help="score only the first tokens of the text")
    parser.add_argument("--device", default="cpu", help="to quantize on")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.held_out, arguments.max_tokens, arguments.device)
        for method in METHODS:
            for bits in (16, 8, 4):
                rows += bench.rows(method, bits)
    result = {
        "benchmark": "lm_head",
        "text": arguments.held_out.name,
        "max_tokens": arguments.max_tokens,
        "rows": rows,
        "device": describe_cpu().name,
        "quantized_on": arguments.device,
        "versions": versions(("numpy", "onnxruntime", "torch", "transformers")),
        "commit": source_commit(),
    }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print_table(rows)


class Bench:
    """Makes checkpoints and bundles of the demo model in a folder, and scores them."""

    def __init__(self, folder: Path, text: Path, max_tokens: int | None, device: str) -> None:
        self._folder = folder
        self._text = text
        self._max_tokens = max_tokens
        self._device = device

    def rows(self, method: str, bits: int) -> list[dict[str, Any]]:
        """At export and calibrated; once for 16 bits."""
        row = {"blocks": method, "group_size": GROUP_SIZE, "lm_head_bits": bits}
        found = [row | {"how": "at export"} | self._score(self._plain(method), bits)]
        if bits == 16:
            return [found[0] | {"how": "16 bits"}]
        made = awq_edge.quantize(
            "demo",
            self._folder / f"{method}-{bits}",
            awq_edge.load_recipe(method=method, group_size=GROUP_SIZE, lm_head_bits=bits),
            run=awq_edge.RunOptions(device=self._device),
        )
        assert made.report.lm_head is not None
        (linear,) = made.report.lm_head.block.linears
        facts = {"how": "calibrated", "sqnr_db": linear.sqnr_db, "rtn_db": linear.rtn_sqnr_db}
        return [*found, row | facts | self._score(made.path, None)]

    def _plain(self, method: str) -> Path:
        path = self._folder / method
        if not path.exists():
            awq_edge.quantize(
                "demo",
                path,
                awq_edge.load_recipe(method=method, group_size=GROUP_SIZE, format="awq"),
                run=awq_edge.RunOptions(device=self._device),
            )
        return path

    def _score(self, checkpoint: Path, bits: int | None) -> dict[str, Any]:
        bundle = awq_edge.export(
            checkpoint,
            self._folder / "bundle",
            awq_edge.load_recipe(lm_head_bits=bits, accuracy_level=0),
            run=awq_edge.RunOptions(overwrite=True),
        )
        report = evaluate_perplexity(bundle.path, self._text, max_tokens=self._max_tokens)
        head = bundle.manifest.part_bytes["lm_head"]
        print(checkpoint.name, bits, report.perplexity, head, flush=True)
        return {"perplexity": report.perplexity, "tokens": report.tokens, "lm_head_bytes": head}


def print_table(rows: list[dict[str, Any]]) -> None:
    print("\n| blocks | lm_head | held-out | gap to 16 bits there | lm_head in the bundle |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        (base,) = [r for r in rows if (r["blocks"], r["how"]) == (row["blocks"], "16 bits")]
        gap = row["perplexity"] - base["perplexity"]
        bits = row["lm_head_bits"]
        how = "16 bits" if bits == 16 else f"{bits} bits, {row['how']}"
        blocks = f"{row['blocks'].upper()} g{row['group_size']}"
        size = row["lm_head_bytes"] / 1e6
        print(f"| {blocks} | {how} | {row['perplexity']:.3f} | {gap:+.3f} | {size:.2f} MB |")


if __name__ == "__main__":
    main()
