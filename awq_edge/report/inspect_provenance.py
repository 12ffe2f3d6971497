"""What the quantization report beside weights says about where they come from."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from awq_edge.quantizer.report import REPORT_FILE, QuantizationReport
from awq_edge.report.inspection import ProvenancePart


def read_report(path: Path) -> tuple[QuantizationReport | None, str | None]:
    """The quantization report in a directory; and, where there is one that cannot be read, why."""
    try:
        text = (path / REPORT_FILE).read_bytes()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{REPORT_FILE} cannot be read: {error.strerror}"
    try:
        return QuantizationReport.model_validate_json(text), None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        return None, f"{REPORT_FILE} is not a valid report ({place}: {problem['msg']})"


def report_provenance(report: QuantizationReport) -> ProvenancePart:
    """What a report knows."""
    drawn = report.calibration
    calibration = None
    if drawn is not None:
        calibration = (
            f"{drawn.source}: {drawn.samples} sequences of {drawn.length} tokens, seed {drawn.seed}"
        )
    return ProvenancePart(
        model_name=report.model_name,
        calibration=calibration,
        versions=report.versions,
        commit=report.commit,
        time=report.time,
    )
