"""Perplexities of a checkpoint and of the model that it came from, in its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from awq_edge.artifacts.directories import atomic_file
from awq_edge.evaluate.report import evaluate_perplexity
from awq_edge.evaluate.text import Text
from awq_edge.quantizer import QuantizedCheckpoint
from awq_edge.quantizer.report.page import PAGE_FILE, write_quantization_page
from awq_edge.quantizer.report.schema import REPORT_FILE, PerplexityComparison, report_warnings
from awq_edge.quantizer.run_options import RunOptions


def with_perplexities(
    checkpoint: QuantizedCheckpoint,
    source: Path,
    texts: Sequence[Text],
    run: RunOptions,
) -> QuantizedCheckpoint:
    """The checkpoint with its perplexities, and those of the model it came from, in its report."""

    def progress(done: int, total: int) -> None:
        if run.observer is not None:
            run.observer(done, total, "perplexity, tokens")

    found = []
    for text in texts:
        original, quantized = (
            evaluate_perplexity(
                target,
                text,
                device=run.device,
                allow_unknown_keys=True,
                verify=False,  # its weights were hashed as they were written
                progress=progress,
            )
            for target in (source, checkpoint.path)
        )
        found.append(
            PerplexityComparison(
                text=original.text.path,
                text_sha256=original.text.sha256,
                tokens=original.tokens,
                window=original.window,
                stride=original.stride,
                dtype=original.model.dtype,
                original=original.perplexity,
                quantized=quantized.perplexity,
            )
        )
    report = checkpoint.report.model_copy(update={"perplexities": tuple(found)})
    report = report.model_copy(update={"warnings": report_warnings(report)})
    with atomic_file(checkpoint.path / REPORT_FILE) as work:
        work.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_quantization_page(report, checkpoint.path / PAGE_FILE)
    return replace(checkpoint, report=report)
