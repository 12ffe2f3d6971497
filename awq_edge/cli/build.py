"""`awq-edge build BUNDLE`: TensorRT engines, ahead of time or on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from awq_edge.artifacts.paths import user_path
from awq_edge.cli.options import BundleArgument, JsonOption
from awq_edge.units import size_text

if TYPE_CHECKING:
    from awq_edge.tensorrt.builder import BuiltEngine

_STEPS = 1000  # of the progress bar, for one engine


def build(
    bundle: BundleArgument,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SM",
            help="Architecture to build for, such as SM89; may be repeated (tensorrt-rtx).  "
            "[default: the recipe's; tensorrt: this machine's]",
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="tensorrt-rtx or tensorrt.  [default: the bundle's]")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build engines again that are there already.")
    ] = False,
    memory_check: Annotated[
        bool,
        typer.Option(
            "--memory-check/--no-memory-check",
            help="Refuse a build that needs more memory than is free.",
        ),
    ] = True,
    json_to: JsonOption = None,
) -> None:
    """Build the engines of a bundle; TensorRT for RTX does it on any x86-64 machine."""
    import json

    from awq_edge.artifacts.directories import Bundle
    from awq_edge.cli.output import JsonTarget, open_console
    from awq_edge.cli.progress import block_progress
    from awq_edge.process.interruption import keeping
    from awq_edge.tensorrt.builder import build_engines

    output = JsonTarget(json_to, [bundle])
    console = output.console()
    built = []
    with (
        keeping(lambda: "engines that were finished are kept; the same command builds the others"),
        block_progress(open_console(stderr=True)) as bar,
    ):

        def observe(index: int, count: int, fraction: float, what: str) -> None:
            bar(int((index + fraction) * _STEPS), count * _STEPS, what)

        bar(0, 1, "checking the bundle's files")
        opened = Bundle.open(user_path(bundle, "BUNDLE"))
        for engine in build_engines(
            opened,
            runtime=runtime,
            targets=target or (),
            memory_check=memory_check,
            rebuild=rebuild,
            observer=observe,
        ):
            # At once: a later one may fail.
            console.print(_line(engine), soft_wrap=True)
            built.append(engine)
    described = {"bundle": str(opened.path), "engines": [_described(engine) for engine in built]}
    output.write(json.dumps(described, indent=2, ensure_ascii=False))


def _line(built: BuiltEngine) -> str:
    """Where an engine is and what it took."""
    manifest = built.engine.manifest
    size = manifest.files[manifest.engine].size
    if built.reused:
        return f"{built.engine.file}: {size_text(size)}, there already"
    figures = manifest.build
    took = f"{figures.seconds:.1f} s"
    if figures.peak_rss is not None:
        took += f", {size_text(figures.peak_rss)} at its peak"
    if figures.available_drop is not None:
        took += f" (the system's free memory fell by {size_text(figures.available_drop)})"
    return f"{built.engine.file}: {size_text(size)}, built in {took}"


def _described(built: BuiltEngine) -> dict[str, Any]:
    """An engine in JSON: its manifest, where it is, whether it was there already."""
    engine = built.engine
    return {
        "path": str(engine.path),
        "engine": str(engine.file),
        "reused": built.reused,
        "manifest": engine.manifest.model_dump(mode="json"),
    }
