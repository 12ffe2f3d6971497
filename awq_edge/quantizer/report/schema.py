"""quantization_report.json: what the quantizer chose, and what it cost.

Errors are relative: squared error over squared output, over all calibration tokens. SQNR is
-10 log10 of it, in dB. `rtn_*` is what round-to-nearest in the same format would have given,
`nf4_*` what NF4 (4.5 bits a weight, see `awq_edge.quantizer.search.nf4`) would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from awq_edge.artifacts.directories import FileEntry
from awq_edge.artifacts.file_names import QUANTIZATION_REPORT
from awq_edge.artifacts.input_files import read_bytes
from awq_edge.artifacts.schema import Manifest, Record, parse_manifest
from awq_edge.errors import ArtifactError
from awq_edge.model.group_size import Coverage
from awq_edge.model.source import ModelSource
from awq_edge.quantizer.report.choice import ChoiceReport

Method = Literal["rtn", "awq", "gptq", "awq+gptq", "refined"]
REPORT_FILE = QUANTIZATION_REPORT
_MAX_BYTES = 200_000_000  # 400 bytes a linear; a model of many experts has 50,000
# Relative squared error of the linears of a block, their mean. In SmolLM2-135M, whose 30 blocks add
# up their errors, 0.009 is half as much perplexity again, 0.04 five times as much, and 0.07 noise
# (docs/quantize.md has the figures).
BLOCK_ERROR_LIMIT = 0.03
PERPLEXITY_LIMIT = 2.0
PACKAGED = "packaged"  # the name of the calibration text that comes with the package


class LinearReport(Record):
    """One linear.

    group: its scale group, None where no scales are searched. exponent: a of s = mean|x|^a, None
    for s = 1. weight_aware: the form with mean|w| in it. clip_share: groups whose range was shrunk,
    0..1. gptq: its codes make up for each other's errors. fell_back: the search found nothing
    better than s = 1. reason: why it stays in 16 bits, None where it is quantized. bits,
    group_size: of its codes; older reports have what most linears do.
    """

    name: str
    quantized: bool
    reason: str | None = None
    bits: int | None = None
    group_size: int | None = None
    group: str | None = None
    exponent: float | None = None
    weight_aware: bool = False
    fell_back: bool = False
    clip_share: float = 0.0
    gptq: bool = False
    relative_mse: float | None = None
    sqnr_db: float | None = None
    rtn_relative_mse: float | None = None
    rtn_sqnr_db: float | None = None
    nf4_relative_mse: float | None = None
    nf4_sqnr_db: float | None = None


class BlockReport(Record):
    """One decoder block. fold_change: relative change of the block's float32 output by the folds.
    sampled_inputs: inputs whose statistics are a token sample instead of G. silent_inputs: those
    that no calibration token reached (experts that were never chosen)."""

    layer: int
    seconds: float
    seconds_by_phase: dict[str, float] = {}
    fold_change: float | None
    sampled_inputs: tuple[str, ...]
    silent_inputs: tuple[str, ...] = ()
    linears: tuple[LinearReport, ...]


class OutputLayerReport(Record):
    """The output layer. tied: it was the embedding of the model, stored once; None in reports that
    do not say so. block: its errors and times, as if it were one more block."""

    tied: bool | None = None

    bits: int
    group_size: int
    scheme: Literal["asymmetric", "symmetric"]
    block: BlockReport


class CalibrationFile(Record):
    """A file that was read. name: without its folder. sha256, bytes: of what was read of it, from
    its beginning; of a hub data set, of its rows as JSON. documents: in that. whole: it was the
    whole file."""

    name: str
    sha256: str
    bytes: int
    documents: int
    whole: bool


class CalibrationReport(Record):
    """source: in words. files: what was read. left_out: files of a folder that were not read, by
    name, with the reason. sha256: of the token ids, int64 little-endian, and of the pixels behind
    them. own_samples: that the model wrote itself, in self_calibration.jsonl; conversations: among
    those. image_samples, image_tokens: samples with an image, and the tokens that images have in
    all; 0 for a model of text."""

    source: str
    files: tuple[CalibrationFile, ...] = ()
    left_out: dict[str, str] = {}
    samples: int
    own_samples: int = 0
    conversations: int = 0
    image_samples: int = 0
    image_tokens: int = 0
    length: int
    seed: int
    sha256: str


class SummaryReport(Record):
    """Means over the quantized linears of the blocks, in dB, and how many linears, and weights of
    them, there are; older reports do not say how many weights."""

    quantized_linears: int
    unquantized_linears: int
    quantized_weights: int | None = None
    unquantized_weights: int | None = None
    mean_sqnr_db: float | None
    mean_rtn_sqnr_db: float | None
    mean_nf4_sqnr_db: float | None = None


class PerplexityComparison(Record):
    """Perplexity of one text under the model as it was and as it is in the checkpoint.

    text: as given. text_sha256: of the file. tokens: scored. window, stride: tokens. dtype: of the
    activations. docs/evaluate.md has the definition.
    """

    text: str
    text_sha256: str
    tokens: int
    window: int
    stride: int
    dtype: str
    original: float
    quantized: float


class QuantizationReport(Manifest):
    """The whole file.

    layout: name of the checkpoint's, see `awq_edge.model.layouts`. lm_head: None where it stays in
    16 bits; `summary` is of the blocks alone.
    errors_of: "outputs" over the calibration tokens, or "weights" where there was no calibration
    (rtn). peak_*: bytes. device: that computed. seconds, peak_*: of the last run, where one was
    resumed. inputs_sha256: of all that the weights depend on, see
    `awq_edge.quantizer.checkpoint.resume`. bits, group_size: of most weights of the blocks.
    choice: of the formats of linears, where a budget has made it.
    source: the model it was made from. weights: every weight file of the checkpoint; `awq-edge
    export` compares them. Both are None in reports of earlier versions.
    perplexities: empty where no text was given to evaluate. notes: choices that differ from what
    the recipe says. warnings: see `report_warnings`.
    """

    noun: ClassVar[str] = "a valid report"
    remedy: ClassVar[str] = "quantize the model again"

    format: Literal["awq-edge-quantization-report"] = "awq-edge-quantization-report"
    format_version: Literal[1] = 1
    model_name: str
    model_type: str
    method: Method
    layout: str = "awq"
    bits: int
    group_size: int
    scheme: Literal["asymmetric", "symmetric"]
    errors_of: Literal["outputs", "weights"]
    calibration: CalibrationReport | None
    summary: SummaryReport
    unquantized: dict[str, str]
    seconds: float
    peak_host_bytes: int | None
    peak_cuda_bytes: int | None
    device: str
    threads: int
    versions: dict[str, str]
    commit: str | None
    time: str
    inputs_sha256: str
    blocks: tuple[BlockReport, ...]
    perplexities: tuple[PerplexityComparison, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    lm_head: OutputLayerReport | None = None
    choice: ChoiceReport | None = None
    source: ModelSource | None = None
    weights: dict[str, FileEntry] | None = None


def report_warnings(report: QuantizationReport) -> tuple[str, ...]:
    """Warnings that the text of the quantized model may be of no use: blocks, or an output layer,
    whose linears are off by more than `BLOCK_ERROR_LIMIT`, and perplexities that have grown by more
    than `PERPLEXITY_LIMIT`."""
    warnings = []
    errors = {f"block {block.layer}": _mean_error(block) for block in report.blocks}
    places = [f"{_count_over(errors)} of {len(errors)} blocks"] if _count_over(errors) else []
    if report.lm_head is not None:
        head = {"the output layer": _mean_error(report.lm_head.block)}
        places += head if _count_over(head) else []
        errors |= head
    if places:
        worst = max(errors, key=lambda name: errors[name])
        warnings.append(
            f"the {report.errors_of} of the linears are off by more than {BLOCK_ERROR_LIMIT:.0%} "
            f"(squared error over square) in {' and '.join(places)}, most in {worst}: "
            f"{errors[worst]:.1%}; models were ruined at such errors. Compare with the model "
            "(`awq-edge eval divergence`), or give more --bits, a smaller --group-size or --method "
            "awq+gptq"
        )
    for row in report.perplexities:
        if not row.quantized <= PERPLEXITY_LIMIT * row.original:
            warnings.append(
                f"the perplexity of {row.text} is {row.quantized:.4g}, {row.original:.4g} before: "
                "the model has lost most of what it knew; give more --bits"
            )
    return tuple(warnings)


def _count_over(errors: Mapping[str, float]) -> int:
    return sum(not error <= BLOCK_ERROR_LIMIT for error in errors.values())


def _mean_error(block: BlockReport) -> float:
    """The mean relative squared error of a block's quantized linears; 0 where none is known."""
    return _mean(linear.relative_mse for linear in block.linears) or 0.0


def sqnr_db(relative_mse: float) -> float:
    """Signal over quantization noise in dB; 300 where there is no noise that float32 can tell."""
    return -10 * math.log10(max(relative_mse, 1e-30))


def summarise(blocks: tuple[BlockReport, ...], weights: Coverage | None = None) -> SummaryReport:
    """Counts and means over all linears. weights: what their weights come to."""
    linears = [linear for block in blocks for linear in block.linears]
    quantized = sum(linear.quantized for linear in linears)
    return SummaryReport(
        quantized_linears=quantized,
        unquantized_linears=len(linears) - quantized,
        quantized_weights=None if weights is None else weights.weights - weights.dense_weights,
        unquantized_weights=None if weights is None else weights.dense_weights,
        mean_sqnr_db=_mean(linear.sqnr_db for linear in linears),
        mean_rtn_sqnr_db=_mean(linear.rtn_sqnr_db for linear in linears),
        mean_nf4_sqnr_db=_mean(linear.nf4_sqnr_db for linear in linears),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def read_quantization_report(directory: Path) -> QuantizationReport:
    """The report of a checkpoint or bundle. Raises ArtifactError when it is not one."""
    data = read_bytes(directory / REPORT_FILE, limit=_MAX_BYTES, error=ArtifactError)
    return parse_manifest(QuantizationReport, data, REPORT_FILE)
