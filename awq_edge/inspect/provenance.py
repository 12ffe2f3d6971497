"""The provenance of weights, by the quantization report beside them."""

from __future__ import annotations

from pathlib import Path

from awq_edge.errors import ArtifactError
from awq_edge.inspect.schema import ProvenanceReport
from awq_edge.quantizer.report.schema import (
    REPORT_FILE,
    QuantizationReport,
    read_quantization_report,
)


def read_report(path: Path) -> tuple[QuantizationReport | None, str | None]:
    """The quantization report in a directory; and the reason why one that is there cannot be
    read."""
    file = path / REPORT_FILE
    if not file.exists():
        return None, None
    try:
        return read_quantization_report(path), None
    except ArtifactError as error:
        return None, str(error)


def report_provenance(report: QuantizationReport) -> ProvenanceReport:
    """The provenance that a report states."""
    drawn = report.calibration
    calibration = None
    if drawn is not None:
        calibration = (
            f"{drawn.source}: {drawn.samples} sequences of {drawn.length} tokens, seed {drawn.seed}"
        )
        if drawn.left_out:
            calibration += f"; left out of the folder: {', '.join(drawn.left_out)}"
    return ProvenanceReport(
        model_name=report.model_name,
        calibration=calibration,
        versions=report.versions,
        commit=report.commit,
        time=report.time,
    )
