"""`awq-edge build-plugins`: compile the kernels and the TensorRT plugin on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build_plugins(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute capability to compile for, such as 8.7; may be repeated.  "
            "[default: that of this machine's GPUs, or all]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to put them.  [default: the user's cache folder]"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compilers at a time.  [default: one per CPU]")
    ] = None,
) -> None:
    """Build the CUDA kernels and, where TensorRT's headers are, its plugin."""
    from rich.text import Text

    from awq_edge.cli.output import open_console, say
    from awq_edge.kernels import build
    from awq_edge.kernels.architectures import dotted
    from awq_edge.terminal_text import one_line

    console = open_console(stderr=True)
    with console.status("looking for the tools") as status:

        def progress(line: str) -> None:
            if console.is_terminal:
                status.update(Text(one_line(line)[: max(20, console.width - 4)]))
            elif not line.startswith("["):
                console.print(line, soft_wrap=True)

        result = build.build_plugins(arch or (), out=out, jobs=jobs, progress=progress)
    names = ", ".join(map(dotted, result.architectures))
    say(f"{result.kernels}: for compute capability {names}, CUDA {result.cuda_version}")
    say(
        f"{build.PLUGIN_FILE_NAME}: {result.not_built}"
        if result.plugin is None
        else f"{result.plugin}: the TensorRT plugin"
    )
