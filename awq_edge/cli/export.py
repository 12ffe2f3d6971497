"""`awq-edge export MODEL`: a bundle that one runtime executes, quantized first where needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.options import (
    AllowUnknownKeysOption,
    BitsOption,
    CalibrationOption,
    DeviceOption,
    ExecutorOption,
    GroupSizeOption,
    LengthOption,
    OutBundle,
    OverwriteOption,
    PropagateErrorOption,
    RayAddressOption,
    RayBlocksOption,
    RayGpusOption,
    ResumeOption,
    SamplesOption,
    SchemeOption,
    SeedOption,
)
from awq_edge.recipe.runtimes import runtime_names
from awq_edge.units import size_text

if TYPE_CHECKING:
    from rich.console import Console

    from awq_edge.artifacts.directories import Bundle


def export(
    model: Annotated[
        str, typer.Argument(help="Directory of a model or checkpoint, a hub id, or 'demo'.")
    ],
    out: OutBundle,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Target device; see `awq-edge recipes`.  [default: cpu, or cuda with --runtime "
            "cuda]"
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(runtime_names())}.  [default: the recipe's]"),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of the KV cache.  [default: the recipe's, or the model's maximum]"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="awq, gptq, awq+gptq, rtn (plain), or none: unquantized.  [default: the recipe's]"
        ),
    ] = None,
    bits: BitsOption = None,
    group_size: GroupSizeOption = None,
    scheme: SchemeOption = None,
    propagate_error: PropagateErrorOption = None,
    lm_head_bits: Annotated[
        int | None,
        typer.Option(
            help="4 or 8; 16: unquantized.  [default: the recipe's, 16 with --method none]"
        ),
    ] = None,
    accuracy_level: Annotated[
        int | None,
        typer.Option(
            help="onnxruntime's: 0 computes in the activations' type, 4 in int8, some three times "
            "as fast.  [default: the recipe's]"
        ),
    ] = None,
    activation_dtype: Annotated[
        str | None,
        typer.Option(
            help="float16, float32 (onnxruntime) or bfloat16 (cuda).  [default: the recipe's]"
        ),
    ] = None,
    linear: Annotated[
        str | None,
        typer.Option(
            help="TensorRT: plugin (this project's kernels) or native (TensorRT's INT4 layers; "
            "symmetric weights only).  [default: the recipe's]"
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="TensorRT: plugin or native layers.  [default: the recipe's]"),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=NUMBER,...|greedy",
            help="How chat and serve draw: temperature, top_k, top_p, min_p, repetition_penalty.  "
            "[default: the model's own]",
        ),
    ] = None,
    calibration: CalibrationOption = None,
    samples: SamplesOption = None,
    length: LengthOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    executor: ExecutorOption = "local",
    ray_address: RayAddressOption = None,
    ray_blocks: RayBlocksOption = None,
    ray_gpus: RayGpusOption = 1.0,
    resume: ResumeOption = True,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Compare a checkpoint's weights with its report's hashes."
        ),
    ] = True,
    allow_unknown_keys: AllowUnknownKeysOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Export a model or a checkpoint into a bundle; a model that is not quantized is, first."""
    from awq_edge.artifacts.sampling_keys import parse_sampling
    from awq_edge.cli.output import open_console
    from awq_edge.cli.progress import block_progress
    from awq_edge.cli.quantize import calibration_notes, print_warnings
    from awq_edge.inspect.provenance import read_report
    from awq_edge.pipeline import export as export_stage
    from awq_edge.quantizer.cluster.options import ExecutorOptions

    with block_progress(open_console(stderr=True)) as observer:
        bundle = export_stage(
            model,
            out,
            recipe=recipe,
            runtime=runtime,
            context=context,
            method=method,
            bits=bits,
            group_size=group_size,
            scheme=scheme,
            propagate_error=propagate_error,
            lm_head_bits=lm_head_bits,
            accuracy_level=accuracy_level,
            activation_dtype=activation_dtype,
            linear=linear,
            attention=attention,
            sampling=None if sampling is None else parse_sampling(sampling, "--sampling"),
            calibration=calibration,
            samples=samples,
            length=length,
            seed=seed,
            device=device,
            executor=ExecutorOptions(executor, ray_address, ray_blocks, ray_gpus),
            resume=resume,
            verify=verify,
            allow_unknown_keys=allow_unknown_keys,
            overwrite=overwrite,
            observer=observer,
        )
    console = open_console()
    print_bundle(bundle, console)
    report, _ = read_report(bundle.path)
    if report is not None:
        for line in calibration_notes(report) if calibration is not None else ():
            console.print(line, soft_wrap=True, markup=False)
        print_warnings(report, console)


def print_bundle(bundle: Bundle, console: Console) -> None:
    """Print the bundle in a few lines, and the next command."""
    from awq_edge.artifacts.input_files import read_json
    from awq_edge.model.archs import decoder_from_config
    from awq_edge.model.group_size import coverage
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
    for line in [*lines, f"next: awq-edge run {bundle.path}"]:
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
