"""Measures rows one after the other; each is kept in a file of its own when it is done."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.schema import read_manifest
from awq_edge.device.torch_device import torch_device
from awq_edge.errors import AwqEdgeError, ConfigError
from awq_edge.evaluate.divergence_report import evaluate_divergence
from experiments.quantizers.making import Setting, make
from experiments.quantizers.result import Comparison, MeasuredRow
from experiments.quantizers.rows import BundleRow, Row
from experiments.quantizers.rows import rows as all_rows

Note = Callable[[str], None]


@dataclass(frozen=True)
class Scoring:
    """The text that every row is scored on, and how: see `awq-edge eval divergence`."""

    text: Path
    window: int
    stride: int
    max_tokens: int | None


def run_rows(
    chosen: Mapping[str, Row], setting: Setting, scoring: Scoring, results: Path, note: Note
) -> list[str]:
    """Measure the rows that are not in `results` yet; the names of those that failed, in order."""
    failed = []
    for name, row in chosen.items():
        if (results / f"{name}.json").exists():
            note(f"{name}: is there")
            continue
        try:
            measured = measure(name, row, setting, scoring)
        except (AwqEdgeError, OSError, RuntimeError) as error:  # the others can do without it
            note(f"{name}: {error}\n{traceback.format_exc(limit=-3)}")
            failed.append(name)
            continue
        with atomic_file(results / f"{name}.json") as work:
            work.write_text(measured.model_dump_json(indent=2) + "\n", encoding="utf-8")
        kl, made = measured.divergence.kl, measured.made
        note(
            f"{name}: KL {kl.mean:.4f}, {made.bits_per_weight:.2f} bits a weight, made in "
            f"{made.seconds:.0f} s, scored in {measured.divergence.seconds:.0f} s"
        )
    return failed


def measure(name: str, row: Row, setting: Setting, scoring: Scoring) -> MeasuredRow:
    """Make one row's weights, unless they are there, and score them."""
    torch_device(setting.device)
    path, made = make(name, row, setting)
    report = evaluate_divergence(
        path,
        setting.model,
        scoring.text,
        window=scoring.window,
        stride=scoring.stride,
        max_tokens=scoring.max_tokens,
        device=setting.device,
        dtype="float32",
    )
    label = row.label
    if isinstance(row, BundleRow):
        label = f"{all_rows()[row.checkpoint].label}, {row.label}"
    return MeasuredRow(
        name=name, label=label, model=setting.model.name, made=made, divergence=report
    )


def collect(results: Sequence[Path]) -> Comparison:
    """The rows of folders of results, in the order of `rows`. Raises ConfigError for none."""
    found = {}
    for folder in results:
        for path in sorted(folder.glob("*.json")):
            row = read_manifest(MeasuredRow, path)
            found[row.name] = row
    ordered = [name for name in all_rows() if name in found]
    if not ordered:
        raise ConfigError(f"no measured rows in {', '.join(map(str, results))}")
    return Comparison(rows=tuple(found[name] for name in ordered))
