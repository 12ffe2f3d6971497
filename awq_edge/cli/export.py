"""`awq-edge export MODEL`: a bundle that one runtime executes, quantized first where needed."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.generated import Given, RunParameter, recipe_options
from awq_edge.cli.options import (
    OUTPUT,
    SAMPLING,
    AllowUnknownKeysOption,
    CalibrationOption,
    ModelArgument,
    RecipeOption,
    VerifyOption,
)
from awq_edge.units import size_text

if TYPE_CHECKING:
    from rich.console import Console

    from awq_edge.artifacts.directories import Bundle
    from awq_edge.exporter.gguf.file import GgufFile


def export(
    model: ModelArgument,
    given: Annotated[Given, recipe_options("export")],
    run: RunParameter,
    out: Annotated[
        Path | None, typer.Option(help="Bundle that the command makes.", rich_help_panel=OUTPUT)
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write one file for llama.cpp and ollama instead. Needs [gguf].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    recipe: RecipeOption = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=NUMBER,...|greedy",
            help="How chat and serve draw: temperature, top_k, top_p, min_p, repetition_penalty.  "
            "[default: the model's own]",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    calibration: CalibrationOption = None,
    verify: VerifyOption = True,
    allow_unknown_keys: AllowUnknownKeysOption = False,
) -> None:
    """Export a model or a checkpoint into a bundle, or a GGUF file; a model that is not quantized
    is, first."""
    from awq_edge.artifacts.sampling_keys import parse_sampling
    from awq_edge.cli.choice_table import print_choice
    from awq_edge.cli.output import open_console
    from awq_edge.cli.progress import block_progress
    from awq_edge.cli.quantize import calibration_notes, print_warnings
    from awq_edge.errors import ConfigError
    from awq_edge.inspect.provenance import read_report
    from awq_edge.pipeline import export as export_stage
    from awq_edge.pipeline import export_gguf
    from awq_edge.recipe.recipes import load_recipe

    if (out is None) == (gguf is None):
        raise ConfigError("give one of --out FOLDER (a bundle) and --gguf FILE")
    if gguf is not None:
        if sampling is not None:
            raise ConfigError("--sampling is for a bundle; a GGUF file has none, leave it out")
        with block_progress(open_console(stderr=True)) as observer:
            file = export_gguf(
                model,
                gguf,
                load_recipe(recipe, **given),
                calibration=calibration,
                verify=verify,
                allow_unknown_keys=allow_unknown_keys,
                run=replace(run, observer=observer),
            )
        print_gguf(file, open_console())
        return
    assert out is not None
    with block_progress(open_console(stderr=True)) as observer:
        bundle = export_stage(
            model,
            out,
            load_recipe(recipe, **given),
            sampling=None if sampling is None else parse_sampling(sampling, "--sampling"),
            calibration=calibration,
            verify=verify,
            allow_unknown_keys=allow_unknown_keys,
            run=replace(run, observer=observer),
        )
    console = open_console()
    print_bundle(bundle, console)
    report, _ = read_report(bundle.path)
    if report is not None:
        if report.choice is not None:
            print_choice(report.choice, console)
        for line in calibration_notes(report) if calibration is not None else ():
            console.print(line, soft_wrap=True, markup=False)
        print_warnings(report, console)


def print_gguf(file: GgufFile, console: Console) -> None:
    """Print a GGUF file in a few lines, and what runs it."""
    from awq_edge.artifacts.gguf_header import how_to_run

    total = sum(file.weights.values())
    types = ", ".join(f"{name} {count / total:.1%}" for name, count in file.weights.items())
    lines = [
        f"{file.path}: {file.architecture} for llama.cpp; {size_text(file.size)}, "
        f"{file.bits_per_weight:.2f} bits a weight",
        f"weights: {types}",
        *(f"note: {note}" for note in file.notes),
        f"next: {how_to_run(file.path)}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def print_bundle(bundle: Bundle, console: Console) -> None:
    """Print the bundle in a few lines, and the next command."""
    from awq_edge.artifacts.input_files import read_json
    from awq_edge.model.archs import decoder_from_config
    from awq_edge.model.group_size import coverage
    from awq_edge.recipe.runtimes import require_runtime
    from awq_edge.runtime.memory import kv_cache_bytes

    manifest = bundle.manifest
    size = sum(entry.size for entry in manifest.files.values())
    parts = {part: count for part, count in manifest.part_bytes.items() if count}
    weights = ", ".join(f"{part} {size_text(count)}" for part, count in parts.items())
    lines = [
        f"{bundle.path}: {manifest.model_name} for {manifest.runtime}, {_format(bundle)}; "
        f"{size_text(size)} on disk",
        f"weights: {weights}",
        f"context: {manifest.context} tokens, KV cache "
        f"{size_text(kv_cache_bytes(manifest, manifest.context))} ({manifest.activation_dtype})",
    ]
    if manifest.linear is not None:
        lines.append(
            f"graph: opset {manifest.opset}, linears {manifest.linear}, attention "
            f"{manifest.attention}"
        )
    decoder = decoder_from_config(read_json(bundle.path / "config.json"))
    lines += [*decoder.notes, *_notes(bundle), *coverage(decoder, manifest.unquantized).lines()]
    head = decoder.architecture.lm_head
    if head in manifest.unquantized:
        lines.append(f"the output layer stays unquantized: {manifest.unquantized[head]}")
    lines += _template_warnings(bundle)
    verb = "run" if require_runtime(manifest.runtime).engine is None else "build"
    for line in [*lines, f"next: awq-edge {verb} {shlex.quote(str(bundle.path))}"]:
        console.print(line, soft_wrap=True, markup=False)


def _template_warnings(bundle: Bundle) -> list[str]:
    """Warnings of chat and serve about a chat template that cannot be used."""
    from awq_edge.errors import AwqEdgeError
    from awq_edge.runtime.chat_template import load_chat_template
    from awq_edge.runtime.tokenizer import Tokenizer

    try:
        template = load_chat_template(bundle.path, Tokenizer(bundle.path).special_tokens)
        if template is not None:
            template.check_words()
    except AwqEdgeError as error:
        return [f"warning: {error}"]
    return []


def _notes(bundle: Bundle) -> tuple[str, ...]:
    """Notes on the choices of the quantization, inside the export or before it."""
    from awq_edge.inspect.provenance import read_report

    report, _ = read_report(bundle.path)
    return () if report is None else report.notes


def _format(bundle: Bundle) -> str:
    manifest = bundle.manifest
    if manifest.method == "none":
        return f"unquantized ({manifest.activation_dtype})"
    return (
        f"{manifest.bits}-bit {manifest.method}, group {manifest.group_size}, {manifest.scheme}, "
        f"lm_head {manifest.lm_head_bits}-bit"
    )
