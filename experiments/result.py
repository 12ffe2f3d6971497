"""What a study finds: rows of measurements by experiment, as `--json` writes them."""

from __future__ import annotations

from typing import Literal

from awq_edge.artifacts.schema import Manifest, Record


class Difference(Record):
    """Of two perplexities of the same tokens. standard_error: over windows, of value."""

    value: float
    standard_error: float


class Measurement(Record):
    """perplexity of `tokens` tokens. gap: to the unquantized model."""

    perplexity: float
    tokens: int
    gap: Difference


class ScaleEffect(Record):
    """What one s for the salient channels does to the groups (the paper's table 2).

    changed_groups: share of groups whose scale D' is not the D of s = 1. scale_ratio: mean D'/D.
    expected_error_ratio: scale_ratio / s. salient_error_ratio, other_error_ratio: root of the
    squared error of those weights, relative to that with s = 1; measured. activation_peaks: the
    largest mean|x| of a channel over that of the median channel, of the input where this is
    smallest and of that where it is largest.
    """

    changed_groups: float
    scale_ratio: float
    expected_error_ratio: float
    salient_error_ratio: float
    other_error_ratio: float
    activation_peaks: tuple[float, float]


class CalibrationInfo(Record):
    """What a row was calibrated on. source: a file's name, or "packaged"."""

    source: str
    samples: int
    seed: int


class Row(Record):
    """One measured model.

    model: the variant. bits, group_size (None: a whole row), share, s, seed: see
    `experiments.treatments.Treatment`, where the method has them. texts: by name. against: what
    `differences` are to, in words.
    """

    model: str
    method: str
    bits: int | None
    group_size: int | None
    share: float | None = None
    s: float | None = None
    seed: int | None = None
    bits_per_weight: float
    calibration: CalibrationInfo | None
    propagate_error: bool = False
    texts: dict[str, Measurement]
    effect: ScaleEffect | None = None
    against: str | None = None
    differences: dict[str, Difference] = {}


class ExperimentResult(Record):
    """seconds: wall-clock; an experiment reuses what those before it measured."""

    name: str
    seconds: float
    rows: tuple[Row, ...]


class SourceInfo(Record):
    """A text that was scored. name: of its file."""

    name: str
    sha256: str


class StudyReport(Manifest):
    """The whole file. window, stride, max_tokens: tokens. seconds, cpu_seconds: of the process."""

    format: Literal["awq-edge-study"] = "awq-edge-study"
    format_version: Literal[1] = 1
    model: str
    held_out: SourceInfo
    text: SourceInfo | None
    calibrations: tuple[str, ...]
    window: int
    stride: int
    max_tokens: int
    experiments: tuple[ExperimentResult, ...]
    seconds: float
    cpu_seconds: float
    device: str
    threads: int
    versions: dict[str, str]
    commit: str | None
