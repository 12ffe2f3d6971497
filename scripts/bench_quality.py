"""Perplexity of the demo model in 16 bits, rounded to nearest, and with AWQ.

    python scripts/bench_quality.py --text test.txt --held-out held_out.txt --json FILE

Each variant is exported and scored through the onnxruntime session, as a user would run it, at
accuracy level 0 (float32) and some at level 4 (int8 activations). The `salient` model computes the
same function as the demo model, with channels that matter more than others, as large models have
(see `experiments.salient`). lm_head stays in 16 bits, so that the blocks alone are compared.
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
from awq_edge.model.hub import resolve_model
from awq_edge.recipe.recipes import load_recipe
from experiments.salient import make_salient

# Accuracy levels that each method is scored at.
METHODS = {"none": (0,), "rtn": (0, 4), "awq": (0, 4), "gptq": (0,), "awq+gptq": (0,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="text of another domain")
    parser.add_argument("--held-out", type=Path, required=True, help="held-out text of its own")
    parser.add_argument("--max-tokens", type=int, help="score only the first tokens of a text")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    texts = {"held_out": arguments.held_out, "text": arguments.text}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        demo = resolve_model("demo")
        models = {"demo": demo, "salient": make_salient(demo, Path(folder) / "salient")}
        for name, model in models.items():
            for method in METHODS:
                rows += measure(name, model, method, texts, arguments.max_tokens, Path(folder))
    result = {
        "benchmark": "quality",
        "texts": {key: path.name for key, path in texts.items()},
        "rows": rows,
        "device": describe_cpu().name,
        "versions": versions(("numpy", "onnxruntime", "torch", "transformers")),
        "commit": source_commit(),
    }
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print_table(rows)


def measure(
    name: str,
    model: Path,
    method: str,
    texts: dict[str, Path],
    max_tokens: int | None,
    folder: Path,
) -> list[dict[str, Any]]:
    """Rows of one model and method: both accuracy levels, both texts."""
    source = model
    if method != "none":
        source = folder / f"{name}-{method}"
        awq_edge.quantize(model, source, load_recipe(method=method, bits=4, group_size=128))
    rows = []
    for level in METHODS[method]:
        bundle = folder / f"{name}-{method}-{level}-bundle"
        awq_edge.export(
            source,
            bundle,
            load_recipe(
                method="none" if method == "none" else None, accuracy_level=level, lm_head_bits=16
            ),
        )
        row: dict[str, Any] = {"model": name, "method": method, "accuracy_level": level}
        for key, text in texts.items():
            report = evaluate_perplexity(bundle, text, max_tokens=max_tokens)
            row[key] = {
                "perplexity": report.perplexity,
                "bits_per_byte": report.bits_per_byte,
                "tokens": report.tokens,
                "window": report.window,
                "stride": report.stride,
                "text_sha256": report.text.sha256,
            }
        rows.append(row)
        print(name, method, level, {key: round(row[key]["perplexity"], 3) for key in texts})
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print("\n| model | weights | accuracy level | held-out | gap | other text |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        base = next(r for r in rows if r["model"] == row["model"] and r["method"] == "none")
        gap = row["held_out"]["perplexity"] - base["held_out"]["perplexity"]
        weights = "16-bit" if row["method"] == "none" else f"INT4 g128, {row['method'].upper()}"
        print(
            f"| {row['model']} | {weights} | {row['accuracy_level']} | "
            f"{row['held_out']['perplexity']:.3f} | {gap:+.3f} | "
            f"{row['text']['perplexity']:.1f} |"
        )


if __name__ == "__main__":
    main()
