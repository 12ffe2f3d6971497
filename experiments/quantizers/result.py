"""A measured row, and the whole comparison, as they are written."""

from __future__ import annotations

from typing import Literal

from awq_edge.artifacts.schema import Manifest, Record
from awq_edge.evaluate.divergence_report import DivergenceReport


class CalibrationTokens(Record):
    """The calibration set. source: in words. sha256: of its ids."""

    source: str
    samples: int
    length: int
    sha256: str | None


class MadeModel(Record):
    """Quantized weights on disk.

    bits_per_weight: of the linears of blocks, scales and zero points counted; those that stayed in
        16 bits too.
    seconds: from a model on disk to one, without imports.
    device: that they were made on.
    calibration: None where no text was read.
    versions: of the packages that made them.
    """

    bits_per_weight: float
    seconds: float
    device: str
    calibration: CalibrationTokens | None
    versions: dict[str, str]


class MeasuredRow(Manifest):
    """One row. name, label: for `--only`, and in the table. model: what was quantized."""

    format: Literal["awq-edge-quantizer-row"] = "awq-edge-quantizer-row"
    format_version: Literal[1] = 1
    name: str
    label: str
    model: str
    made: MadeModel
    divergence: DivergenceReport


class Comparison(Manifest):
    """The rows of one model."""

    format: Literal["awq-edge-quantizers"] = "awq-edge-quantizers"
    format_version: Literal[1] = 1
    rows: tuple[MeasuredRow, ...]
