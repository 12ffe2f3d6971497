"""The quantization stage: check everything, quantize block by block, publish the checkpoint."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from awq_edge.artifacts.directories import atomic_directory
from awq_edge.artifacts.file_names import CALIBRATION_FILE
from awq_edge.artifacts.outputs import check_output, refuse_existing, require_disk
from awq_edge.artifacts.paths import is_disk_full
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.torch_device import device_name, torch_device
from awq_edge.errors import AwqEdgeError, ConfigError, ModelError, ResourceError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.group_size import coverage, require_groups
from awq_edge.model.layouts import Layout, choose_layout
from awq_edge.model.lm_head import UNQUANTIZED, output_format
from awq_edge.model.source import describe_model, hash_weight_files, verify_weights
from awq_edge.process.staging import workplace
from awq_edge.quantizer.blocks.stream import CalibrationStream
from awq_edge.quantizer.blocks.task import BlockOptions, obstacles
from awq_edge.quantizer.budget.choice import choose, chosen_formats
from awq_edge.quantizer.budget.losses import measure_losses
from awq_edge.quantizer.budget.offers import Budget
from awq_edge.quantizer.calibration.own_text import Progress
from awq_edge.quantizer.calibration.plan import plan_calibration
from awq_edge.quantizer.calibration.text import CalibrationSet, calibration_report
from awq_edge.quantizer.checkpoint.resume import (
    BlockStore,
    has_blocks,
    kept_blocks,
    resume_key,
    stored_bytes,
)
from awq_edge.quantizer.checkpoint.writer import (
    CheckpointWriter,
    checkpoint_bytes,
    checkpoint_formats,
    require_finite_outside_blocks,
    tensors_outside_blocks,
    write_config,
)
from awq_edge.quantizer.cluster.executors import open_executor
from awq_edge.quantizer.inputs import known_method, open_unquantized
from awq_edge.quantizer.loop import quantize_layers
from awq_edge.quantizer.report.choice import ChoiceReport
from awq_edge.quantizer.report.page import PAGE_FILE, write_quantization_page
from awq_edge.quantizer.report.schema import (
    REPORT_FILE,
    BlockReport,
    Method,
    OutputLayerReport,
    QuantizationReport,
    read_quantization_report,
    report_warnings,
    summarise,
)
from awq_edge.quantizer.run_options import HERE, RunOptions
from awq_edge.quantizer.search.effort import EFFORTS
from awq_edge.quantizer.search.rounding import NumberFormat, NumberFormats
from awq_edge.recipe.recipes import Recipe
from awq_edge.runtime.memory import read_process_memory


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """path: directory in one of `awq_edge.model.layouts`. report: quantization_report.json's."""

    path: Path
    report: QuantizationReport


@dataclass(frozen=True)
class _Job:
    """The checked inputs of one run. lm_head: None where it stays in 16 bits. calibration: None for
    plain rounding. key: of the finished blocks. started: seconds of the performance counter.
    choice: of formats that differ, by a budget; None for one that was asked for."""

    model_name: str
    given: str | None
    checkpoint: Checkpoint
    method: Method
    layout: Layout
    formats: NumberFormats
    recipe: Recipe
    lm_head: NumberFormat | None
    calibration: CalibrationSet | None
    device: torch.device
    run: RunOptions
    key: str
    notes: tuple[str, ...]
    started: float
    choice: ChoiceReport | None = None


def quantize_checkpoint(
    model: Path,
    out: Path,
    recipe: Recipe,
    *,
    model_name: str,
    given: str | None = None,
    calibration: str | Path | None = None,
    images: Path | None = None,
    run: RunOptions = HERE,
    reuse: bool = False,
    room: int = 0,
    notes: Sequence[str] = (),
    budget: Budget | None = None,
) -> QuantizedCheckpoint:
    """Quantize a model directory into a checkpoint directory.

    recipe: method, layout, bits, group size, scheme, output layer, error propagation, calibration.
    calibration: see `plan_calibration`. images: a directory of pictures for a vision-language
    model, None for drawn ones.
    run: its executor is for searches, "rtn" is done here; it resumes from the finished blocks
    beside `out`.
    reuse: return what `out` holds if it was made from the same inputs. notes: of the report.
    given: the model as the user named it. room: bytes that the caller writes beside the checkpoint.
    budget: chooses the bits and groups of each linear, in the place of the recipe's.
    Raises ModelError for a model that is damaged, unknown or quantized already, ConfigError for
    options that cannot be met, or where no linear fits the groups, ResourceError when the disk is
    too full.
    """
    started = time.perf_counter()
    defaults, method = recipe.quantization, known_method(recipe.quantization.method)
    layout = choose_layout(defaults.format, defaults.bits)
    number_format = NumberFormat(defaults.bits, defaults.group_size, defaults.scheme)
    where = torch_device(run.device)
    continued = run.resume and has_blocks(out)
    if not reuse and not continued:
        inputs = {"MODEL": model, "--calibration": calibration, "--images": images}
        check_output(out, overwrite=run.overwrite, inputs=inputs)
    checkpoint = open_unquantized(model)
    checkpoint.files.require_readable()
    if images is not None and checkpoint.decoder.images is None:
        raise ConfigError(
            f"--images {images}: model_type '{checkpoint.decoder.model_type}' takes no images; "
            "leave the flag out"
        )
    require_groups(checkpoint.decoder, layout, number_format)
    require_finite_outside_blocks(checkpoint)
    plan = None
    if method != "rtn":
        plan = plan_calibration(checkpoint, recipe.calibration, calibration, images, where)
    settings = {
        "recipe": recipe.model_dump(mode="json", include={"quantization", "calibration"}),
        "calibration": None if plan is None else plan.key,
        "device": device_name(where),
        "budget": None if budget is None else budget.key,
    }
    key = resume_key(checkpoint, settings)
    if (reuse or continued) and (found := _finished(out, key)) is not None:
        if continued:  # killed between the two: the checkpoint is there, so is the folder
            BlockStore(out, key).remove()
        return found
    if not reuse:
        refuse_existing(out, overwrite=run.overwrite)
    decoder = checkpoint.decoder
    formats = budget.bounding_formats(decoder) if budget else NumberFormats(number_format)
    size = checkpoint_bytes(checkpoint, formats, defaults.lm_head_bits)
    finished = stored_bytes(out) if run.resume else 0
    kept = f"; {kept_blocks(out, resume=True)}" if finished else ""
    # Finished blocks and the shards that are made of them: twice. What the caller writes then comes
    # when the blocks are gone.
    needed = max(2 * size - finished, size + room - finished)
    what = "making the checkpoint and the bundle" if room else "the checkpoint"
    require_disk(workplace(out)[0], needed, what, kept)
    store = BlockStore(out, key, resume=run.resume)
    try:
        drawn = None if plan is None else plan.draw(store.folder, _drawing(checkpoint, run))
        job = _Job(
            model_name=model_name,
            given=given,
            checkpoint=checkpoint,
            method=method,
            layout=layout,
            formats=formats,
            recipe=recipe,
            lm_head=output_format(
                layout, number_format, defaults.lm_head_bits, decoder.embedding_size
            ),
            calibration=drawn,
            device=where,
            run=run,
            key=key,
            notes=(*notes, *(() if plan is None else plan.notes)),
            started=started,
        )
        if budget is not None:
            job = _with_choice(job, budget, store)
        reports = _quantize_layers(job, store)
        report = _publish(job, store, reports, out, run.overwrite or reuse)
    except (ConfigError, ModelError):
        store.remove()  # the same run would end the same way
        raise
    except BaseException as error:
        store.close()
        if is_disk_full(error):
            raise ResourceError(
                f"the disk of {out.parent} filled up while {out.name} was made; free some space "
                "and run the same command again: finished blocks are kept"
            ) from None
        raise
    store.remove()
    return QuantizedCheckpoint(out, report)


def _drawing(checkpoint: Checkpoint, run: RunOptions) -> Progress:
    """The observer of a calibration text that is being drawn."""
    blocks, observer = checkpoint.decoder.num_layers, run.observer

    def observe(done: int, total: int) -> None:
        if observer is not None:
            observer(0, blocks, f"calibration text, {done / total:.0%}")

    return observe


def _finished(out: Path, key: str) -> QuantizedCheckpoint | None:
    """The checkpoint in `out` if it was made from the same inputs."""
    try:
        report = read_quantization_report(out)
        if report.inputs_sha256 != key:
            return None
        verify_weights(Checkpoint.open(out).files)
    except AwqEdgeError:  # it is made again
        return None
    return QuantizedCheckpoint(out, report)


def _with_choice(job: _Job, budget: Budget, store: BlockStore) -> _Job:
    """The job with the formats of a budget: those that an interrupted run chose, if one did."""
    choice = store.choice()
    if choice is None:
        assert job.calibration is not None, "a budget needs a method that is calibrated"
        losses = measure_losses(
            job.checkpoint, budget, job.calibration, _options(job), job.device, job.run.observer
        )
        choice = choose(budget, losses)
        store.save_choice(choice)
    formats = chosen_formats(job.checkpoint.decoder, budget, choice)
    return replace(job, choice=choice, formats=formats)


def _quantize_layers(job: _Job, store: BlockStore) -> list[BlockReport]:
    """Every block that is not in the store yet, into the store; the output layer is the last."""
    checkpoint, options, device = job.checkpoint, _options(job), job.device
    with contextlib.ExitStack() as stack:
        stream = executor = None
        count = checkpoint.decoder.num_layers + (job.lm_head is not None)
        if job.calibration is not None and not store.has_all(count):
            executor = stack.enter_context(
                open_executor(job.run.workers, checkpoint, options, device)
            )
            stream = CalibrationStream(checkpoint, job.calibration, options, device)
        return quantize_layers(
            checkpoint,
            options,
            job.lm_head,
            stream,
            store,
            device,
            executor=executor,
            observer=job.run.observer,
        )


def _options(job: _Job) -> BlockOptions:
    defaults = job.recipe.quantization
    return BlockOptions(
        formats=job.formats,
        layout=job.layout,
        statistics_budget=defaults.statistics_budget_bytes,
        seed=job.recipe.calibration.seed,
        propagate_error=defaults.propagate_error,
        search=job.method in ("awq", "awq+gptq", "refined"),
        gptq=job.method in ("gptq", "awq+gptq", "refined"),
        refinement=EFFORTS[defaults.effort] if job.method == "refined" else None,
    )


def _publish(
    job: _Job,
    store: BlockStore,
    reports: list[BlockReport],
    out: Path,
    overwrite: bool,
) -> QuantizationReport:
    """Make the checkpoint directory of the stored blocks and what lies outside them."""
    total = job.checkpoint.decoder.num_layers
    if job.run.observer is not None:
        job.run.observer(total, total, "writing")
    with atomic_directory(out, overwrite=overwrite) as work:
        writer = CheckpointWriter(work)
        written = set()
        for part in range(len(reports)):
            for name, tensor in store.stored(part):
                writer.add(name, tensor)
                written.add(name)
        if job.lm_head is not None:
            written.add(f"{job.checkpoint.decoder.architecture.lm_head}.weight")
        for name, tensor in tensors_outside_blocks(job.checkpoint, written):
            writer.add(name, tensor)
        writer.finish()
        hashes = hash_weight_files(work, sorted(work.glob("*.safetensors")))
        report = _report(job, reports).model_copy(
            update={"source": describe_model(job.checkpoint, job.given), "weights": hashes}
        )
        formats = checkpoint_formats(
            job.checkpoint, job.formats, job.lm_head, report.unquantized, job.method
        )
        write_config(job.checkpoint, work, job.layout, formats)
        if job.calibration is not None and job.calibration.own_samples:
            shutil.copyfile(store.folder / CALIBRATION_FILE, work / CALIBRATION_FILE)
        (work / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_quantization_page(report, work / PAGE_FILE)
    return report


def _unquantized_lm_head(job: _Job) -> dict[str, str]:
    """Why the output layer stays in 16 bits though other bits were asked for."""
    decoder = job.checkpoint.decoder
    bits = job.recipe.quantization.lm_head_bits
    if job.lm_head is not None or bits == UNQUANTIZED or not job.layout.mixed:
        return {}
    size = decoder.embedding_size
    return {decoder.architecture.lm_head: f"in_features {size} is not a multiple of 32"}


def _report(job: _Job, reports: list[BlockReport]) -> QuantizationReport:
    decoder, drawn = job.checkpoint.decoder, job.calibration
    blocks = tuple(reports[: decoder.num_layers])
    lm_head = None
    if job.lm_head is not None:
        lm_head = OutputLayerReport(
            tied=decoder.tied_embeddings,
            bits=job.lm_head.bits,
            group_size=job.lm_head.group_size,
            scheme=job.lm_head.scheme,
            block=reports[-1],
        )
    dense = {
        f"{decoder.layer_prefix(layer)}.{name}": reason
        for layer in range(decoder.num_layers)
        for name, reason in obstacles(job.checkpoint, job.layout, job.formats, layer).items()
    }
    is_cuda = job.device.type == "cuda"
    report = QuantizationReport(
        model_name=job.model_name,
        model_type=decoder.model_type,
        method=job.method,
        layout=job.layout.name,
        bits=job.formats.main.bits,
        group_size=job.formats.main.group_size,
        scheme=job.formats.main.scheme,
        errors_of="weights" if drawn is None else "outputs",
        calibration=None if drawn is None else calibration_report(drawn, decoder.images),
        notes=job.notes,
        summary=summarise(blocks, coverage(decoder, dense)),
        unquantized=dense | _unquantized_lm_head(job),
        seconds=time.perf_counter() - job.started,
        peak_host_bytes=read_process_memory().peak_rss,
        peak_cuda_bytes=torch.cuda.max_memory_allocated(job.device) if is_cuda else None,
        device=device_name(job.device),
        threads=torch.get_num_threads(),
        versions=versions(("torch", "transformers", "tokenizers", "numpy")),
        commit=source_commit(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        inputs_sha256=job.key,
        blocks=blocks,
        lm_head=lm_head,
        choice=job.choice,
    )
    return report.model_copy(update={"warnings": report_warnings(report)})
