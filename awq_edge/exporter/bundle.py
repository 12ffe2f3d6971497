"""From a checkpoint to a bundle: build, lower, write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import onnx

from awq_edge._version import __version__
from awq_edge.artifacts.config_keys import ConfigKeys
from awq_edge.artifacts.directories import (
    MANIFEST,
    Bundle,
    BundleManifest,
    FileEntry,
    PluginUse,
    atomic_directory,
    hash_file,
)
from awq_edge.artifacts.file_names import RECIPE_FILE
from awq_edge.artifacts.outputs import check_output, require_disk
from awq_edge.artifacts.provenance import source_commit
from awq_edge.artifacts.sampling_keys import FALLBACK, GENERATION_CONFIG, SamplingKeys, sampling_of
from awq_edge.exporter.checks import check_context, check_model, check_recipe
from awq_edge.exporter.lowered import Lowered
from awq_edge.exporter.lowerings import Lowering, require_lowering
from awq_edge.exporter.overrides import check_lm_head, wanted_lm_head_bits
from awq_edge.exporter.plugin_ops import plugin_attributes
from awq_edge.exporter.spec import GraphSpec
from awq_edge.exporter.unquantized import lm_head_bits, unquantized_linears
from awq_edge.exporter.writer import WeightPlan, write_weights
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.files import ModelFiles
from awq_edge.model.layouts import without_quantization
from awq_edge.model.source import bundle_source, verify_weights
from awq_edge.process.staging import workplace
from awq_edge.recipe.recipes import QuantizationDefaults, Recipe

Observer = Callable[[int, int, str], None]


def export_checkpoint(
    model: Path | Checkpoint,
    out: Path,
    recipe: Recipe,
    *,
    model_name: str,
    given: str | None = None,
    sampling: SamplingKeys | None = None,
    overwrite: bool = False,
    verify: bool = True,
    kept: bool = True,
    checked: Lowering | None = None,
    observer: Observer | None = None,
) -> Bundle:
    """Export a model directory, quantized (see `awq_edge.model.layouts`) or not, into a bundle.

    model: a directory, or one that is open; without quantization_config it is exported
    unquantized, whatever the recipe's method.
    recipe: names the runtime. Its context is clipped to what the model allows, and refused beyond
    that where it was asked for; the output layer of an unquantized model is rounded to its
    lm_head_bits only where they were.
    model_name: as reports call it. given: the model as the user named it.
    sampling: keys in the place of the model's own set, for chat and serve.
    verify: compare the weights with the hashes in the checkpoint's report.
    kept: whether the checkpoint stays after the export.
    checked: the answer of `check_export` about this model and recipe, where it was asked before.
    observer: called with the megabytes written, their number, and a word.

    Peak memory is the largest tensor and some 300 MB, whatever the size of the model.
    Raises ConfigError (a runtime without a lowering, a context beyond the model's, an `out` that
    exists), ModelError (the checkpoint), ResourceError (disk space).
    """
    # One that does not stay lies where the work on this bundle does.
    source = Checkpoint.open(model) if isinstance(model, Path) else model
    check_output(out, overwrite=overwrite, inputs={"MODEL": source.path} if kept else {})
    lowering = checked or check_export(source, recipe)
    unquantized = unquantized_linears(source, wanted_lm_head_bits(recipe, source))
    recipe = resolved_recipe(recipe, source)
    spec = GraphSpec(
        context=recipe.export.context,
        lm_head_bits=recipe.quantization.lm_head_bits,
    )
    lowered = lowering(source, spec, recipe)
    plan = WeightPlan.of(lowered.weights)
    graph = lowered.render(plan)
    needed = plan.size + len(graph) + source.files.small_bytes()
    require_disk(workplace(out)[0], needed, f"the bundle of {model_name}")
    if verify:
        verify_weights(source.files)
    with atomic_directory(out, overwrite=overwrite) as work:
        files = _write_files(work, source.files, lowered, graph, plan, recipe, observer)
        manifest = _manifest(source, recipe, lowered, graph, plan, files, model_name, unquantized)
        chain = bundle_source(source, given, kept=kept)
        defaults = bundle_sampling(source.files, sampling)
        manifest = manifest.model_copy(update={"sampling": defaults, "source": chain})
        text = manifest.model_dump_json(indent=2)
        (work / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return Bundle(out, manifest)


def check_export(checkpoint: Checkpoint, recipe: Recipe) -> Lowering:
    """Raise for whatever an export would refuse later; so that it is known before a model is
    quantized. The errors are those of `export_checkpoint`."""
    lowering = require_lowering(recipe.runtime.backend)
    check_recipe(recipe)
    model = checkpoint.path
    checkpoint.files.require_readable()
    bundle_sampling(checkpoint.files, None)
    check_model(checkpoint, recipe)
    if "export.context" in recipe.asked:
        source = f"the model (max_position_embeddings of {model / 'config.json'})"
        check_context(checkpoint.decoder, recipe.export.context, source)
    check_lm_head(checkpoint, recipe)
    return lowering


def bundle_sampling(files: ModelFiles, asked: SamplingKeys | None) -> SamplingKeys | None:
    """The model's own set with the keys that were asked for; None where there is neither.

    Raises ModelError for values of generation_config.json that cannot be.
    """
    own = sampling_of(files.generation_config(), files.path / GENERATION_CONFIG)
    return own if asked is None else asked.over(own or FALLBACK)


def resolved_recipe(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe with the values that this checkpoint decides: method, format, lm_head, context."""
    tokens = min(recipe.export.context, checkpoint.decoder.max_positions)
    lm_head_asked = wanted_lm_head_bits(recipe, checkpoint)
    quantization = checkpoint.quantization
    values: dict[str, object] = {
        "export.context": tokens,
        "export.prefill_chunk": min(recipe.export.prefill_chunk, tokens),
        "quantization.lm_head_bits": lm_head_bits(checkpoint, lm_head_asked),
        "quantization.method": "none",
    }
    if quantization is not None:
        for key in ("method", "bits", "group_size", "scheme"):
            value = getattr(quantization, key)
            # Other tools' checkpoints have groups, and methods, that no recipe can ask for; the
            # manifest has them.
            known = get_args(QuantizationDefaults.model_fields[key].annotation)
            values[f"quantization.{key}"] = value if value in known else None
    return recipe.resolved(values)


def _write_files(
    work: Path,
    files: ModelFiles,
    lowered: Lowered,
    model: bytes,
    plan: WeightPlan,
    recipe: Recipe,
    observer: Observer | None,
) -> dict[str, FileEntry]:
    """Everything but the manifest; sizes and hashes by name."""

    def report(done: int, total: int, what: str) -> None:
        if observer is not None:
            observer(done // 1_000_000, total // 1_000_000, f"{what}, MB")

    weights = write_weights(plan, work / lowered.weights_file, report)
    (work / lowered.model_file).write_bytes(model)
    for file in _copied(files):
        shutil.copyfile(file, work / file.name)
    config = without_quantization(files.config)
    (work / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (work / RECIPE_FILE).write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    others = sorted(path for path in work.iterdir() if path.name != lowered.weights_file)
    return {lowered.weights_file: weights} | {path.name: hash_file(path) for path in others}


def _copied(files: ModelFiles) -> list[Path]:
    """Files of the model's directory that a bundle takes over as they are."""
    return [*files.tokenizer_files(), *files.report_files()]


def _manifest(
    checkpoint: Checkpoint,
    recipe: Recipe,
    lowered: Lowered,
    model: bytes,
    plan: WeightPlan,
    files: dict[str, FileEntry],
    model_name: str,
    unquantized: dict[str, str],
) -> BundleManifest:
    decoder, quantization = checkpoint.decoder, checkpoint.quantization
    activation_dtype = recipe.runtime.activation_dtype
    unquantized_bits = 32 if activation_dtype == "float32" else 16
    return BundleManifest(
        awq_edge_version=__version__,
        commit=source_commit(),
        model_name=model_name,
        model_type=decoder.model_type,
        runtime=recipe.runtime.backend,
        min_runtime_version=lowered.minimum_version,
        opset=lowered.opset,
        graph=lowered.model_file,
        weights=lowered.weights_file,
        context=recipe.export.context,
        prefill_chunk=recipe.export.prefill_chunk,
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.widest_intermediate_size,
        experts_per_token=decoder.moe.experts_per_token if decoder.moe else 0,
        num_layers=decoder.num_layers,
        num_heads=decoder.num_heads,
        num_kv_heads=decoder.num_kv_heads,
        head_size=decoder.head_size,
        activation_dtype=activation_dtype,
        accuracy_level=lowered.accuracy_level,
        linear=lowered.linear,
        attention=lowered.attention,
        plugin=_plugin_use(lowered, model),
        method=quantization.method if quantization else "none",
        bits=quantization.bits if quantization else unquantized_bits,
        group_size=quantization.group_size if quantization else 0,
        scheme=quantization.scheme if quantization else "none",
        lm_head_bits=recipe.quantization.lm_head_bits,
        output_layer_was_tied=checkpoint.output_layer_was_tied,
        other_formats=_other_formats(checkpoint),
        bos_token_id=decoder.bos_token_id,
        eos_token_ids=_eos_token_ids(checkpoint),
        part_bytes=plan.part_bytes(),
        bytes_per_token=plan.bytes_per_token(),
        scale_groups=lowered.scale_groups,
        arena_bytes=dict(lowered.arena_bytes),
        unquantized=unquantized,
        inputs=lowered.inputs,
        outputs=lowered.outputs,
        source={},
        files=files,
    )


def _plugin_use(lowered: Lowered, model: bytes) -> PluginUse | None:
    """The graph's demands on the plugin, with the attributes of its nodes as they were rendered."""
    if lowered.plugin is None:
        return None
    attributes = plugin_attributes(onnx.load_from_string(model))
    return lowered.plugin.model_copy(update={"attributes": attributes})


def _other_formats(checkpoint: Checkpoint) -> dict[str, str]:
    """Linears of blocks whose format is not that of most: full name -> its format in words."""
    formats, decoder = {}, checkpoint.decoder
    for layer in range(decoder.num_layers):
        for linear in decoder.linears(layer):
            name = f"{decoder.layer_prefix(layer)}.{linear.name}"
            if checkpoint.is_quantized(name):
                number_format = checkpoint.linear_format(name)
                if number_format != checkpoint.main_format:
                    formats[name] = str(number_format)
    return formats


def _eos_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Ids of generation_config.json and of config.json: either may be the longer list."""
    keys = ConfigKeys(checkpoint.files.generation_config(), "generation_config.json")
    return tuple(
        dict.fromkeys([*keys.token_ids("eos_token_id"), *checkpoint.decoder.eos_token_ids])
    )
