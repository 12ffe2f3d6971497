"""The road as calls: `awq_edge.quantize`, `awq_edge.export` and `awq_edge.export_gguf`. Needs the
[host] extra.

Stages do not know each other; here they are put one behind the other.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_edge.artifacts.directories import Bundle
from awq_edge.artifacts.outputs import check_output, require_apart
from awq_edge.artifacts.paths import system_faults, user_path
from awq_edge.artifacts.sampling_keys import SamplingKeys, check_sampling
from awq_edge.deprecated import with_former
from awq_edge.errors import AwqEdgeError, ConfigError, ModelError
from awq_edge.model.archs import decoder_from_config, require_known_keys
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles, read_config
from awq_edge.model.foreign_formats import refuse_foreign
from awq_edge.model.group_size import choose_group_size
from awq_edge.model.hub import resolve_model
from awq_edge.model.lm_head import UNQUANTIZED, for_export
from awq_edge.process.interruption import keeping
from awq_edge.process.staging import CHECKPOINT, RESUME, discard, discard_abandoned, hold, kept_path
from awq_edge.quantizer.run_options import HERE, RunOptions
from awq_edge.recipe.recipes import Recipe, load_recipe

if TYPE_CHECKING:
    from awq_edge.exporter.gguf.file import GgufFile
    from awq_edge.quantizer import QuantizedCheckpoint
    from awq_edge.quantizer.budget.offers import Budget


@system_faults()
def quantize(
    model: str | Path,
    out: str | Path,
    recipe: str | Path | Recipe = "cpu",
    *,
    calibration: str | Path | None = None,
    images: str | Path | None = None,
    eval_texts: Sequence[str | Path] = (),
    allow_unknown_keys: bool = False,
    run: RunOptions = HERE,
    **former: Any,
) -> QuantizedCheckpoint:
    """Quantize a model into a checkpoint that transformers and vLLM read too.

    model: a directory, a hub id, or "demo".
    recipe: a name, a path, or a recipe with options, `load_recipe("cpu", bits=3, group_size=64)`.
    Where no group size was asked for and the recipe's does not fit every linear, that of 128, 64
    and 32 is taken which quantizes most weights. An output layer of 4 or 8 bits that was asked for
    makes the layout compressed-tensors, because AutoAWQ's has it in 16.
    calibration: a file of text or of documents in JSON (docs/quantize.md), a folder of such files,
    "hub:NAME", or None for the text that comes with the package.
    images: a directory of pictures for a vision-language model, or None for drawn ones.
    eval_texts: files whose perplexity, of the model and of the checkpoint, goes into the report;
    each is loaded whole for it, in float32.
    allow_unknown_keys: ignore keys of config.json that only a newer transformers may know.
    run: the device, the executor, and what to do with an output that is there.
    former: the keyword arguments of before, which still work and warn.
    Returns the checkpoint's path and its report. Raises AwqEdgeError (see `awq_edge.errors`).
    """
    from awq_edge.evaluate.comparison import with_perplexities
    from awq_edge.evaluate.text import read_text
    from awq_edge.fit.budget import require_checkpoint_budget
    from awq_edge.quantizer import quantize_checkpoint
    from awq_edge.quantizer.checkpoint.resume import has_blocks, kept_blocks
    from awq_edge.runtime.tokenizer import Tokenizer

    inputs = _inputs(model, recipe, calibration, images, eval_texts)
    resolved, run = with_former("quantize", recipe, run, former)
    resolved = _holding_lm_head(resolved)
    require_checkpoint_budget(resolved)
    run = replace(run, executor=run.workers)
    out = user_path(out, "--out")
    if run.resume and has_blocks(out):
        require_apart(out, inputs.items())
    else:
        check_output(out, overwrite=run.overwrite, inputs=inputs)
    texts = [read_text(Path(text), "--eval-text") for text in eval_texts]
    source = resolve_model(str(model))
    require_apart(out, [("MODEL", source)])
    files = ModelFiles(source)
    refuse_foreign(source, files.config, files.entries)
    require_known_keys(files.config, source, allow=allow_unknown_keys)
    Tokenizer(source)  # without it, or damaged, the checkpoint would be of no use
    resolved, notes, budget = _planned(resolved, source)
    with keeping(lambda: kept_blocks(out, resume=run.resume)):
        checkpoint = quantize_checkpoint(
            source,
            out,
            resolved,
            model_name=model_name(str(model)),
            given=str(model),
            calibration=calibration,
            images=None if images is None else user_path(images, "--images"),
            run=run,
            notes=notes,
            budget=budget,
        )
    if not texts:
        return checkpoint
    try:
        with keeping(lambda: f"{out} is complete, but not evaluated"):
            return with_perplexities(checkpoint, source, texts, run)
    except AwqEdgeError as error:
        raise type(error)(f"{out} is complete, but not evaluated: {error}") from error


@system_faults()
def export(
    model: str | Path,
    out: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    sampling: SamplingKeys | Mapping[str, float] | None = None,
    calibration: str | Path | None = None,
    verify: bool = True,
    allow_unknown_keys: bool = False,
    run: RunOptions = HERE,
    **former: Any,
) -> Bundle:
    """Export a model or a checkpoint into a bundle for one runtime, quantizing it first if needed.

    model: a directory, a hub id, or "demo"; a checkpoint that is quantized already is exported as
    it is, and options of the recipe that contradict it are refused.
    recipe: a name, a path, or a recipe with options, `load_recipe("cpu", context=1024)`; None for
    "cpu".
    sampling: keys that chat and serve draw by, in the place of the model's: {"temperature": 0.6}.
    verify: compare the weights of a checkpoint with the hashes in its quantization report.
    calibration, allow_unknown_keys, run, former: see `quantize`.
    Raises AwqEdgeError (see `awq_edge.errors`).
    """
    from awq_edge.exporter.bundle import check_export, export_checkpoint
    from awq_edge.exporter.overrides import check_forms, check_overrides
    from awq_edge.fit.budget import require_bundle_budget
    from awq_edge.runtime.tokenizer import Tokenizer

    inputs = _inputs(model, recipe, calibration, None, ())
    resolved, run = with_former("export", recipe, run, former)
    if sampling is not None and not isinstance(sampling, SamplingKeys):
        sampling = check_sampling(sampling, "sampling")
    run = replace(run, executor=run.workers)
    out = user_path(out, "--out")
    check_forms(resolved)
    # What can be refused is refused before minutes of quantization.
    check_output(out, overwrite=run.overwrite, inputs=inputs)
    path = resolve_model(str(model))
    require_apart(out, [("MODEL", path)])
    source = Checkpoint.open(path)
    checked = check_export(source, resolved)
    Tokenizer(path)  # `run` needs one, on a device that cannot make it
    write = functools.partial(
        export_checkpoint,
        out=out,
        model_name=model_name(str(model)),
        given=str(model),
        sampling=sampling,
        overwrite=run.overwrite,
        observer=run.observer,
    )
    require_known_keys(source.files.config, path, allow=allow_unknown_keys)
    if source.has_quantized:
        check_overrides(source, resolved, calibration)
    else:
        require_bundle_budget(resolved)
    if source.has_quantized or resolved.quantization.method == "none":
        bundle = write(source, recipe=resolved, verify=verify, checked=checked)
        _discard_kept(out)
        return bundle
    resolved, notes, budget = _planned(for_export(resolved), path)
    room = _bundle_bytes(path, resolved, budget)
    with _quantized(str(model), path, out, resolved, calibration, run, room, notes, budget) as made:
        return write(made, recipe=resolved, kept=False)


@system_faults()
def export_gguf(
    model: str | Path,
    out: str | Path,
    recipe: str | Path | Recipe | None = None,
    *,
    calibration: str | Path | None = None,
    verify: bool = True,
    allow_unknown_keys: bool = False,
    run: RunOptions = HERE,
) -> GgufFile:
    """Export a model or a checkpoint into one GGUF file, quantizing it first if needed.

    out: the file. recipe: as for `export`; what it says of a runtime has no effect. Weights of 4
    bits, and of 8 without zero points, keep their codes; an output layer that is unquantized, and
    an embedding that is one, is rounded to the recipe's lm_head_bits.
    model, calibration, verify, allow_unknown_keys, run: see `export`.
    Needs the [gguf] extra. Raises AwqEdgeError (see `awq_edge.errors`): ModelError for an
    architecture, a number format or a tokenizer that llama.cpp has not.
    """
    from awq_edge.exporter.gguf.file import check_gguf, check_gguf_output, plan_gguf, write_gguf
    from awq_edge.exporter.overrides import (
        check_gguf_options,
        check_lm_head,
        check_overrides,
        wanted_lm_head_bits,
    )

    inputs = _inputs(model, recipe, calibration, None, ())
    resolved = load_recipe(None) if recipe is None else recipe
    resolved = resolved if isinstance(resolved, Recipe) else load_recipe(resolved)
    check_gguf_options(resolved)
    run, out = replace(run, executor=run.workers), user_path(out, "--gguf")
    check_gguf_output(out, overwrite=run.overwrite, inputs=inputs)
    path = resolve_model(str(model))
    source = Checkpoint.open(path)
    require_known_keys(source.files.config, path, allow=allow_unknown_keys)
    check_lm_head(source, resolved)

    def write(checkpoint: Checkpoint, verify: bool) -> GgufFile:
        plan = plan_gguf(checkpoint, wanted_lm_head_bits(resolved, checkpoint))
        return write_gguf(
            plan,
            out,
            model_name=model_name(str(model)),
            overwrite=run.overwrite,
            verify=verify,
            observer=run.observer,
        )

    if source.has_quantized:
        check_overrides(source, resolved, calibration)
    if source.has_quantized or resolved.quantization.method == "none":
        return write(source, verify)
    # The output layer stays as it is until it is rounded into the file's own blocks: calibrated, a
    # tied one would become a second weight beside the embedding.
    quantized, notes = _with_groups(
        resolved.resolved({"quantization.lm_head_bits": UNQUANTIZED}), path
    )
    room = check_gguf(source, quantized)
    with _quantized(str(model), path, out, quantized, calibration, run, room, notes) as made:
        return write(Checkpoint.open(made), verify=False)


@contextlib.contextmanager
def _quantized(
    model: str,
    path: Path,
    out: Path,
    recipe: Recipe,
    calibration: str | Path | None,
    run: RunOptions,
    room: int,
    notes: tuple[str, ...],
    budget: Budget | None = None,
) -> Iterator[Path]:
    """The checkpoint that an export makes on its way, of a model that is not quantized.

    model: as given. path: of it. room: bytes that the export will take.

    It lies beside the output: there is the disk that was chosen for large files. It is kept when a
    run is killed, so that the next one continues where it was.
    """
    from awq_edge.quantizer import quantize_checkpoint
    from awq_edge.quantizer.checkpoint.resume import kept_blocks

    between = kept_path(out, CHECKPOINT)
    with keeping(lambda: kept_blocks(between, resume=run.resume)):
        checkpoint = quantize_checkpoint(
            path,
            between,
            recipe,
            model_name=model_name(model),
            given=model,
            calibration=calibration,
            run=replace(run, overwrite=True),  # a checkpoint of ours
            reuse=run.resume,
            room=room,
            notes=notes,
            budget=budget,
        )
    with _keeping(between):
        yield checkpoint.path


@contextlib.contextmanager
def _keeping(between: Path) -> Iterator[None]:
    """Hold the checkpoint of an export; remove it when the bundle is there, or when the next run
    would end with the same error."""
    kept = f"the quantized model is kept in {between}; the same command goes on with it"
    lock = hold(between)
    if lock is None:
        raise ConfigError(f"another run uses {between} now; wait for it or choose another --out")
    try:
        with keeping(lambda: kept):
            yield
        discard(between)
    except (ConfigError, ModelError):
        discard(between)
        raise
    except AwqEdgeError as error:
        raise type(error)(f"{error}; {kept}") from error
    finally:
        os.close(lock)


def _discard_kept(out: Path) -> None:
    """Remove what an interrupted export of something else has left for the same bundle."""
    between = kept_path(out, CHECKPOINT)
    for path in (kept_path(between, RESUME), between):
        discard_abandoned(path)


def _bundle_bytes(model: Path, recipe: Recipe, budget: Budget | None) -> int:
    """About the bytes of the bundle that a model will become; of a budget, at most."""
    from awq_edge.fit.planner import Planner
    from awq_edge.program.formats import planned_formats

    files = ModelFiles(model)
    decoder = decoder_from_config(files.config)
    quantization = recipe.quantization
    others = {} if budget is None else budget.bounding_formats(decoder).others
    formats = planned_formats(decoder, quantization, quantization.lm_head_bits, others)
    tokens = min(recipe.export.context, decoder.max_positions)
    weights = sum(Planner(decoder, formats, recipe).sizes(tokens).part_bytes.values())
    return weights + 2 * files.small_bytes()  # those of the checkpoint's report too


def _inputs(
    model: str | Path,
    recipe: str | Path | Recipe | None,
    calibration: str | Path | None,
    images: str | Path | None,
    texts: Sequence[str | Path],
) -> dict[str, str | Path | None]:
    """What a command reads, by the words for it."""
    found = {"MODEL": model, "--calibration": calibration, "--images": images}
    found["--recipe"] = None if isinstance(recipe, Recipe) else recipe
    return found | {f"--eval-text {index + 1}": text for index, text in enumerate(texts)}


def _with_groups(recipe: Recipe, model: Path) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with groups that fit this model, and why they are not the recipe's own."""
    if recipe.quantization.method == "none":
        return recipe, ()
    choice = choose_group_size(recipe, decoder_from_config(read_config(model)))
    notes = () if choice.note is None else (choice.note,)
    return recipe.resolved({"quantization.group_size": choice.size}), notes


def _planned(recipe: Recipe, model: Path) -> tuple[Recipe, tuple[str, ...], Budget | None]:
    """The recipe with groups that fit this model, and why they are not its own; or the budget of
    bits that it asks for, and a layout that holds linears that differ."""
    from awq_edge.fit.budget import LAYOUT, plan_budget

    resolved, notes = _with_groups(recipe, model)
    budget = plan_budget(model, decoder_from_config(read_config(model)), resolved)
    if budget is None:
        return resolved, notes, None
    return resolved.resolved({"quantization.format": LAYOUT}), (), budget


def _holding_lm_head(recipe: Recipe) -> Recipe:
    """The recipe with a layout that holds the quantized output layer that was asked for. Raises
    ConfigError where it names one that does not."""
    bits = recipe.asked.get("quantization.lm_head_bits", UNQUANTIZED)
    if bits == UNQUANTIZED:
        return recipe
    if recipe.quantization.format == "awq":
        raise ConfigError(
            f"--lm-head-bits {bits}: the AutoAWQ layout has the output layer in 16 bits (an export "
            "rounds it then); give --format compressed-tensors, or leave out --lm-head-bits"
        )
    return recipe.resolved({"quantization.format": "compressed-tensors"})


def model_name(model: str) -> str:
    """How reports call a model: "demo", the hub id, or the directory's name."""
    path = user_path(model, "MODEL")
    return path.resolve().name if path.is_dir() else model
