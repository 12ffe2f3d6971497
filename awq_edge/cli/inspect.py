"""`awq-edge inspect DIRECTORY`: what a bundle, a checkpoint or a model holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from awq_edge.cli.options import JsonOption

if TYPE_CHECKING:
    from awq_edge.inspect.schema import Inspection


def inspect(
    directory: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT_OR_BUNDLE",
            help="Directory of a bundle, a checkpoint or a model, a .gguf file, or 'demo'.",
        ),
    ],
    hashes: Annotated[
        bool, typer.Option("--hashes", help="Show the sha256 of every file.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read a bundle's files and compare with its manifest."),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the page of its quantization report again. Needs [host]."
        ),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Show what is inside: parts, bits, sizes, bytes a token, provenance, files."""
    from awq_edge.artifacts.paths import user_path
    from awq_edge.cli.inspect_table import print_inspection
    from awq_edge.cli.output import JsonTarget
    from awq_edge.errors import ArtifactError
    from awq_edge.inspect.artifact import inspect_artifact
    from awq_edge.model.hub import resolve_model

    target = JsonTarget(json_to, [directory])
    path = resolve_model(directory) if directory == "demo" else user_path(directory, "DIRECTORY")
    inspection = inspect_artifact(path, hashes=hashes, verify=verify)
    console = target.console()
    print_inspection(inspection, console, hashes=hashes or verify)
    target.write(inspection.model_dump_json(indent=2))
    if html is not None:
        _write_page(path, html)
        console.print(f"written: {html}", soft_wrap=True)
    if inspection.problems:
        raise ArtifactError(_damage(inspection))


def _damage(inspection: Inspection) -> str:
    """The faults of a directory in one line."""
    if inspection.kind != "bundle":
        return "; ".join(inspection.problems)
    return f"{inspection.path}: {'; '.join(inspection.problems)}; copy or export it again"


def _write_page(path: Path, html: Path) -> None:
    """Make the page of a directory's quantization report."""
    from awq_edge.errors import ArtifactError, ConfigError
    from awq_edge.inspect.provenance import read_report
    from awq_edge.quantizer.report.page import write_quantization_page

    report, problem = read_report(path)
    if problem is not None:
        raise ArtifactError(f"{path}: {problem}")
    if report is None:
        raise ConfigError(
            f"--html: {path} has no quantization_report.json; `awq-edge quantize` writes one"
        )
    try:
        write_quantization_page(report, html)
    except OSError as error:
        raise ConfigError(f"--html {html}: cannot be written: {error.strerror}") from None
