"""The road as calls: `awq_edge.quantize` and `awq_edge.export`. Needs the [host] extra.

Stages do not know each other; here they are put one behind the other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from awq_edge.artifacts.directories import Bundle, atomic_file
from awq_edge.artifacts.outputs import check_output, require_apart
from awq_edge.artifacts.paths import system_faults, user_path
from awq_edge.artifacts.sampling_keys import SamplingKeys, check_sampling
from awq_edge.errors import AwqEdgeError, ConfigError, ModelError
from awq_edge.model.archs import decoder_from_config, require_known_keys
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles, read_config
from awq_edge.model.foreign_formats import refuse_foreign
from awq_edge.model.group_size import choose_group_size
from awq_edge.model.hub import resolve_model
from awq_edge.model.lm_head import for_export
from awq_edge.process.interruption import keeping
from awq_edge.process.staging import CHECKPOINT, RESUME, discard, discard_abandoned, hold, kept_path
from awq_edge.quantizer.cluster.options import ExecutorOptions
from awq_edge.recipe.recipes import Recipe, default_recipe, load_recipe
from awq_edge.recipe.runtimes import require_runtime

if TYPE_CHECKING:
    from awq_edge.evaluate.text import Text
    from awq_edge.quantizer import QuantizedCheckpoint

# (steps done, steps, what is being done)
Observer = Callable[[int, int, str], None]


@system_faults()
def quantize(
    model: str | Path,
    out: str | Path,
    *,
    recipe: str | Path | Recipe = "cpu",
    method: str | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    scheme: str | None = None,
    propagate_error: bool | None = None,
    format: str | None = None,
    lm_head_bits: int | None = None,
    calibration: str | Path | None = None,
    images: str | Path | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    eval_texts: Sequence[str | Path] = (),
    executor: str | ExecutorOptions = "local",
    resume: bool = True,
    allow_unknown_keys: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> QuantizedCheckpoint:
    """Quantize a model into a checkpoint that transformers and vLLM read too.

    model: a directory, a hub id, or "demo". recipe: a name, a path, or a Recipe; the arguments
    after it override its keys where they are not None. format: "awq" (AutoAWQ gemm, 4 bits) or
    "compressed-tensors"; None for the first where that holds what is asked for. lm_head_bits: 4, 8
    or 16; a compressed-tensors checkpoint has the output layer in them, an AutoAWQ one in 16.
    group_size: None for the recipe's, or that of 128, 64 and 32 which quantizes most weights, where
    the recipe's does not fit every linear.
    calibration: a file of text or of documents in JSON (docs/quantize.md), a folder of such files,
    "hub:NAME", or None for the text that comes with the package. images: a directory of pictures
    for a vision-language model, or None for drawn ones. device: "cpu" (default), "cuda" or
    "cuda:N". eval_texts: files whose perplexity, of the model and of the checkpoint, goes into the
    report; each is loaded whole for it, in float32.
    executor: "local", "ray", or `ExecutorOptions`; the result does not depend on it. resume:
    continue where a run that was killed has stopped. allow_unknown_keys: ignore keys of config.json
    that only a newer transformers may know. observer: called with the blocks done, their number and
    a word.
    Returns the checkpoint's path and its report. Raises AwqEdgeError (see `awq_edge.errors`).
    """
    from awq_edge.evaluate.text import read_text
    from awq_edge.quantizer import quantize_checkpoint
    from awq_edge.quantizer.checkpoint.resume import has_blocks, kept_blocks
    from awq_edge.runtime.tokenizer import Tokenizer

    work = _executor(executor)
    resolved = _recipe(recipe).overridden(
        {
            "quantization.method": method,
            "quantization.bits": bits,
            "quantization.group_size": group_size,
            "quantization.scheme": scheme,
            "quantization.propagate_error": propagate_error,
            "quantization.format": format,
            "quantization.lm_head_bits": lm_head_bits,
            "calibration.samples": samples,
            "calibration.length": length,
            "calibration.seed": seed,
        }
    )
    if lm_head_bits in (4, 8):
        resolved = _holding_lm_head(resolved)
    out = user_path(out, "--out")
    inputs = _inputs(model, recipe, calibration, images, eval_texts)
    if resume and has_blocks(out):
        require_apart(out, inputs.items())
    else:
        check_output(out, overwrite=overwrite, inputs=inputs)
    texts = [read_text(Path(text), "--eval-text") for text in eval_texts]
    source = resolve_model(str(model))
    require_apart(out, [("MODEL", source)])
    files = ModelFiles(source)
    refuse_foreign(source, files.config, files.entries)
    require_known_keys(files.config, source, allow=allow_unknown_keys)
    Tokenizer(source)  # without it, or damaged, the checkpoint would be of no use
    resolved, notes = _with_groups(resolved, source, group_size)
    with keeping(lambda: kept_blocks(out, resume=resume)):
        checkpoint = quantize_checkpoint(
            source,
            out,
            resolved,
            model_name=model_name(str(model)),
            given=str(model),
            calibration=calibration,
            images=None if images is None else user_path(images, "--images"),
            device=device or "cpu",
            executor=work,
            resume=resume,
            overwrite=overwrite,
            notes=notes,
            observer=observer,
        )
    if not texts:
        return checkpoint
    try:
        with keeping(lambda: f"{out} is complete, but not evaluated"):
            return _with_perplexities(checkpoint, source, texts, device, observer)
    except AwqEdgeError as error:
        raise type(error)(f"{out} is complete, but not evaluated: {error}") from error


@system_faults()
def export(
    model: str | Path,
    out: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    runtime: str | None = None,
    context: int | None = None,
    method: str | None = None,
    bits: int | None = None,
    group_size: int | None = None,
    scheme: str | None = None,
    propagate_error: bool | None = None,
    lm_head_bits: int | None = None,
    accuracy_level: int | None = None,
    activation_dtype: str | None = None,
    linear: str | None = None,
    attention: str | None = None,
    sampling: SamplingKeys | Mapping[str, float] | None = None,
    calibration: str | Path | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    executor: str | ExecutorOptions = "local",
    resume: bool = True,
    verify: bool = True,
    allow_unknown_keys: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Bundle:
    """Export a model or a checkpoint into a bundle for one runtime, quantizing it first if needed.

    model: a directory, a hub id, or "demo"; a checkpoint that is quantized already is exported as
    it is, and arguments that contradict it are refused. recipe: None for "cpu", or for the recipe
    that is called as the runtime. runtime: None for the recipe's. context: tokens of the KV cache.
    linear, attention: "plugin" or "native", for TensorRT only. sampling: keys of how chat and serve
    draw, in the place of the model's own: {"temperature": 0.6}. verify: compare the weights of a
    checkpoint with the hashes in its quantization report. The others: see `quantize`.
    Raises AwqEdgeError (see `awq_edge.errors`).
    """
    from awq_edge.exporter.bundle import check_export, export_checkpoint
    from awq_edge.exporter.overrides import check_forms, check_overrides
    from awq_edge.runtime.tokenizer import Tokenizer

    out = user_path(out, "--out")
    if sampling is not None and not isinstance(sampling, SamplingKeys):
        sampling = check_sampling(sampling, "sampling")
    work = _executor(executor)
    # By name, before the recipe is asked for what such a runtime needs.
    if runtime is not None:
        require_runtime(runtime)
    loaded = default_recipe(runtime) if recipe is None else _recipe(recipe)
    check_forms(runtime or loaded.runtime.backend, linear=linear, attention=attention)
    resolved = loaded.overridden(
        {
            "runtime.backend": runtime,
            "runtime.accuracy_level": accuracy_level,
            "runtime.activation_dtype": activation_dtype,
            "export.linear": linear,
            "export.attention": attention,
            "quantization.method": method,
            "quantization.bits": bits,
            "quantization.group_size": group_size,
            "quantization.scheme": scheme,
            "quantization.propagate_error": propagate_error,
            "quantization.lm_head_bits": lm_head_bits,
            "calibration.samples": samples,
            "calibration.length": length,
            "calibration.seed": seed,
        }
    )
    # What can be refused is refused before minutes of quantization.
    check_output(out, overwrite=overwrite, inputs=_inputs(model, recipe, calibration, None, ()))
    path = resolve_model(str(model))
    require_apart(out, [("MODEL", path)])
    source = Checkpoint.open(path)
    checked = check_export(source, resolved, context=context, lm_head_bits=lm_head_bits)
    Tokenizer(path)  # `run` needs one, on a device that cannot make it
    name = model_name(str(model))
    require_known_keys(source.files.config, path, allow=allow_unknown_keys)
    if source.has_quantized:
        check_overrides(
            source,
            {
                "method": method,
                "bits": bits,
                "group_size": group_size,
                "scheme": scheme,
                "propagate_error": propagate_error,
                "calibration": calibration,
                "samples": samples,
                "length": length,
                "seed": seed,
            },
        )
    if source.has_quantized or resolved.quantization.method == "none":
        bundle = export_checkpoint(
            source,
            out,
            resolved,
            model_name=name,
            given=str(model),
            context=context,
            lm_head_bits=lm_head_bits,
            sampling=sampling,
            overwrite=overwrite,
            verify=verify,
            checked=checked,
            observer=observer,
        )
        _discard_kept(out)
        return bundle
    from awq_edge.quantizer import quantize_checkpoint
    from awq_edge.quantizer.checkpoint.resume import kept_blocks

    resolved = for_export(resolved)
    resolved, notes = _with_groups(resolved, path, group_size)
    # Beside the bundle: there is the disk that was chosen for large files. Kept when a run is
    # killed, so that the next one continues where it was.
    between = kept_path(out, CHECKPOINT)
    with keeping(lambda: kept_blocks(between, resume=resume)):
        checkpoint = quantize_checkpoint(
            path,
            between,
            resolved,
            model_name=name,
            given=str(model),
            calibration=calibration,
            device=device or "cpu",
            executor=work,
            resume=resume,
            reuse=resume,
            overwrite=True,  # a checkpoint of ours
            room=_bundle_bytes(path, resolved, context),
            notes=notes,
            observer=observer,
        )
    with _keeping(between):
        return export_checkpoint(
            checkpoint.path,
            out,
            resolved,
            model_name=name,
            given=str(model),
            context=context,
            lm_head_bits=lm_head_bits,
            sampling=sampling,
            overwrite=overwrite,
            kept=False,
            observer=observer,
        )


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


def _bundle_bytes(model: Path, recipe: Recipe, context: int | None) -> int:
    """About the bytes of the bundle that a model will become."""
    from awq_edge.fit.formats import planned_formats
    from awq_edge.fit.sizes import Planner

    decoder = decoder_from_config(read_config(model))
    quantization = recipe.quantization
    formats = planned_formats(decoder, quantization, quantization.lm_head_bits)
    tokens = min(context or recipe.export.context, decoder.max_positions)
    return sum(Planner(decoder, formats, recipe).sizes(tokens).part_bytes.values())


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


def _with_perplexities(
    checkpoint: QuantizedCheckpoint,
    source: Path,
    texts: Sequence[Text],
    device: str | None,
    observer: Observer | None,
) -> QuantizedCheckpoint:
    """The checkpoint with its perplexities, and those of the model it came from, in its report."""
    from awq_edge.evaluate.report import evaluate_perplexity
    from awq_edge.quantizer.report.page import PAGE_FILE, write_quantization_page
    from awq_edge.quantizer.report.schema import REPORT_FILE, PerplexityComparison, report_warnings

    def progress(done: int, total: int) -> None:
        if observer is not None:
            observer(done, total, "perplexity, tokens")

    found = []
    for text in texts:
        original, quantized = (
            evaluate_perplexity(
                target, text, device=device, allow_unknown_keys=True, progress=progress
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


def _with_groups(recipe: Recipe, model: Path, asked: int | None) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with groups that fit this model, unless a size was asked for; and what to say."""
    if asked is not None or recipe.quantization.method == "none":
        return recipe, ()
    decoder = decoder_from_config(read_config(model))
    choice = choose_group_size(recipe, decoder)
    notes = () if choice.note is None else (choice.note,)
    return recipe.overridden({"quantization.group_size": choice.size}), notes


def _holding_lm_head(recipe: Recipe) -> Recipe:
    """The recipe with a layout that holds a quantized output layer. Raises ConfigError where it
    names one that does not."""
    if recipe.quantization.format == "awq":
        raise ConfigError(
            f"--lm-head-bits {recipe.quantization.lm_head_bits}: the AutoAWQ layout has the output "
            "layer in 16 bits (an export rounds it then); give --format compressed-tensors, or "
            "leave out --lm-head-bits"
        )
    return recipe.overridden({"quantization.format": "compressed-tensors"})


def model_name(model: str) -> str:
    """How reports call a model: "demo", the hub id, or the directory's name."""
    path = user_path(model, "MODEL")
    return path.resolve().name if path.is_dir() else model


def _executor(executor: str | ExecutorOptions) -> ExecutorOptions:
    return ExecutorOptions(executor) if isinstance(executor, str) else executor


def _recipe(recipe: str | Path | Recipe) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
