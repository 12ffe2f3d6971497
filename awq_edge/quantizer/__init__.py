"""From a model to an AWQ checkpoint. Needs the [host] extra."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import cast, get_args

import torch

from awq_edge.artifacts import atomic_directory, refuse_existing, require_disk
from awq_edge.checkpoint import Checkpoint
from awq_edge.errors import ConfigError, ModelError
from awq_edge.provenance import source_commit, versions
from awq_edge.quantizer.calibration import CalibrationSet, load_calibration
from awq_edge.quantizer.driver import BlockOptions, CalibratedBlocks, Observer, RtnBlocks, obstacles
from awq_edge.quantizer.report import (
    REPORT_FILE,
    CalibrationReport,
    Method,
    QuantizationReport,
    summarise,
)
from awq_edge.quantizer.rounding import NumberFormat
from awq_edge.quantizer.writer import (
    CheckpointWriter,
    checkpoint_bytes,
    tensors_outside_blocks,
    write_config,
)
from awq_edge.recipe import Recipe
from awq_edge.runtime.memory import read_process_memory
from awq_edge.runtime.tokenizer import Tokenizer
from awq_edge.torch_device import device_name, torch_device

__all__ = ["QuantizationReport", "QuantizedCheckpoint", "quantize_checkpoint"]

_BITS = (4,)


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """path: directory in the AutoAWQ gemm layout. report: what quantization_report.json says."""

    path: Path
    report: QuantizationReport


def quantize_checkpoint(
    model: Path,
    out: Path,
    recipe: Recipe,
    *,
    model_name: str,
    calibration: str | Path | None = None,
    device: str = "cpu",
    propagate_error: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> QuantizedCheckpoint:
    """Quantize a model directory into a checkpoint directory.

    recipe: method, bits, group size, scheme, calibration size and seed. calibration: a text file,
    a directory of text files, "hub:NAME", or None for the packaged text. device: cpu, cuda or
    cuda:N. propagate_error: later blocks see quantized inputs.
    Raises ModelError for a model that is damaged, unknown or quantized already, ConfigError for
    options that cannot be met, ResourceError when the disk is too full.
    """
    start = time.perf_counter()
    defaults = recipe.quantization
    method = _method(defaults.method)
    if defaults.bits not in _BITS:
        raise ConfigError(
            f"bits {defaults.bits}: the AutoAWQ layout holds 4-bit weights; give --bits 4"
        )
    number_format = NumberFormat(defaults.bits, defaults.group_size, defaults.scheme)
    where = torch_device(device)
    refuse_existing(out, overwrite=overwrite)
    checkpoint = _open_unquantized(model)
    require_disk(out.parent, checkpoint_bytes(checkpoint, number_format), "the checkpoint")
    blocks, drawn = _blocks(
        checkpoint, recipe, method, number_format, calibration, where, propagate_error
    )
    decoder = checkpoint.decoder
    with atomic_directory(out, overwrite=overwrite) as work:
        writer = CheckpointWriter(work)
        reports = []
        for layer in range(decoder.num_layers):
            if observer is not None:
                observer(layer, decoder.num_layers, f"block {layer}")
            reports.append(blocks.quantize(layer, writer))
        if observer is not None:
            observer(decoder.num_layers, decoder.num_layers, "writing")
        for name, tensor in tensors_outside_blocks(checkpoint):
            writer.add(name, tensor)
        writer.finish()
        unquantized = {
            f"{decoder.layer_prefix(layer)}.{name}": reason
            for layer in range(decoder.num_layers)
            for name, reason in obstacles(checkpoint, number_format).items()
        }
        write_config(checkpoint, work, number_format, method, list(unquantized))
        report = QuantizationReport(
            model_name=model_name,
            model_type=decoder.model_type,
            method=method,
            bits=number_format.bits,
            group_size=number_format.group_size,
            scheme=number_format.scheme,
            errors_of="weights" if drawn is None else "outputs",
            calibration=None if drawn is None else _calibration_report(drawn),
            summary=summarise(tuple(reports)),
            unquantized=unquantized,
            seconds=time.perf_counter() - start,
            peak_host_bytes=read_process_memory().peak_rss,
            peak_cuda_bytes=(
                torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None
            ),
            device=device_name(where),
            threads=torch.get_num_threads(),
            versions=versions(("torch", "transformers", "tokenizers", "numpy")),
            commit=source_commit(),
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            blocks=tuple(reports),
        )
        (work / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return QuantizedCheckpoint(out, report)


def _method(method: str) -> Method:
    for known in get_args(Method):
        if method == known:
            return cast(Method, known)
    raise ConfigError(
        f"method {method}: there is nothing to quantize; export the model as it is with "
        f"`awq-edge export MODEL --method none`, or give --method {', '.join(get_args(Method))}"
    )


def _open_unquantized(model: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(model)
    if checkpoint.quantization is not None:
        raise ModelError(
            f"{model} is quantized already ({checkpoint.quantization.bits}-bit "
            f"{checkpoint.quantization.method}); export it as it is with `awq-edge export {model}`"
        )
    return checkpoint


def _blocks(
    checkpoint: Checkpoint,
    recipe: Recipe,
    method: Method,
    number_format: NumberFormat,
    calibration: str | Path | None,
    device: torch.device,
    propagate_error: bool,
) -> tuple[CalibratedBlocks | RtnBlocks, CalibrationSet | None]:
    if method == "rtn":
        return RtnBlocks(checkpoint, number_format, device), None
    drawn = load_calibration(
        calibration,
        Tokenizer(checkpoint.path),
        samples=recipe.calibration.samples,
        length=recipe.calibration.length,
        seed=recipe.calibration.seed,
        max_positions=checkpoint.decoder.max_positions,
    )
    if int(drawn.ids.max()) >= checkpoint.decoder.vocab_size:
        raise ModelError(
            f"{checkpoint.path}: its tokenizer has ids up to {int(drawn.ids.max())}, config.json a "
            f"vocab_size of {checkpoint.decoder.vocab_size}; they do not belong together"
        )
    options = BlockOptions(
        number_format=number_format,
        statistics_budget=recipe.quantization.statistics_budget_bytes,
        seed=recipe.calibration.seed,
        propagate_error=propagate_error,
        search=method != "gptq",
        gptq=method != "awq",
    )
    return CalibratedBlocks(checkpoint, drawn, options, device), drawn


def _calibration_report(drawn: CalibrationSet) -> CalibrationReport:
    samples, length = drawn.ids.shape
    return CalibrationReport(
        source=drawn.source, samples=samples, length=length, seed=drawn.seed, sha256=drawn.sha256
    )
