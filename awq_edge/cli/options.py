"""Flags that commands share, so that they read and mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeOption = Annotated[str, typer.Option(help="Target device; see `awq-edge recipes`.")]
BitsOption = Annotated[
    int | None, typer.Option(help="Bits of a weight: 2, 3, 4, 8.  [default: the recipe's]")
]
GroupSizeOption = Annotated[
    int | None,
    typer.Option(help="Input channels that share a scale: 32, 64, 128.  [default: the recipe's]"),
]
SchemeOption = Annotated[
    str | None, typer.Option(help="asymmetric or symmetric.  [default: the recipe's]")
]
PropagateErrorOption = Annotated[
    bool | None,
    typer.Option(
        "--propagate-error/--no-propagate-error",
        help="Calibrate later blocks on the outputs of quantized ones.  [default: the recipe's]",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(help="awq (AutoAWQ gemm, 4 bits) or compressed-tensors.  [default: the recipe's]"),
]
LmHeadBitsOption = Annotated[
    int | None, typer.Option(help="Bits of the output layer: 4, 8, 16.  [default: the recipe's]")
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|hub:NAME",
        help="Text or .jsonl file, folder of such files, or hub data set.  [default: packaged "
        "text]",
    ),
]
SamplesOption = Annotated[
    int | None, typer.Option(help="Calibration sequences.  [default: the recipe's]")
]
LengthOption = Annotated[
    int | None, typer.Option(help="Tokens of one sequence.  [default: the recipe's]")
]
SeedOption = Annotated[
    int | None, typer.Option(help="Draws the sequences.  [default: the recipe's]")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N, to quantize on.  [default: cpu]")
]
ExecutorOption = Annotated[
    str,
    typer.Option(help="local: this process; ray: the machines of a Ray cluster. Same result."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|auto",
        help="A Ray cluster that runs.  [default: RAY_ADDRESS, or one for this run, here]",
    ),
]
RayBlocksOption = Annotated[
    int | None,
    typer.Option(help="Blocks in work at a time.  [default: as many as there is room for]"),
]
RayGpusOption = Annotated[
    float, typer.Option(help="Share of a GPU that a Ray task gets, with --device cuda.")
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume", help="Keep the finished blocks of a run that was interrupted."
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace a checkpoint or bundle of awq-edge that --out is."),
]
AllowUnknownKeysOption = Annotated[
    bool,
    typer.Option(
        "--allow-unknown-keys",
        help="Ignore keys of config.json that only a newer transformers may know.",
    ),
]
OutCheckpoint = Annotated[
    Path, typer.Option(help="Directory of the checkpoint, made by this command.")
]
OutBundle = Annotated[Path, typer.Option(help="Directory of the bundle, made by this command.")]
StopOption = Annotated[
    list[str] | None, typer.Option(help="End before this text; may be given several times.")
]
