"""`python -m experiments` as a call: experiments by name, their results, tables and plots."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from awq_edge.artifacts.directories import atomic_file
from awq_edge.artifacts.outputs import read_own, require_apart, require_writable
from awq_edge.artifacts.provenance import source_commit, versions
from awq_edge.device.torch_device import device_name, torch_device
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.model.hub import resolve_model
from awq_edge.pipeline import model_name
from awq_edge.process.children import scratch_directory
from awq_edge.quantizer.report.schema import PACKAGED
from experiments.catalogue import ANY_GROUP, EXPERIMENTS, Inputs
from experiments.result import ExperimentResult, StudyReport
from experiments.salient import make_salient
from experiments.tables import table_of
from experiments.workbench import DEFAULT_SAMPLES, LARGEST_GROUP, Calibration, Text, Workbench

MAX_TOKENS = 20_000
# (experiments done, experiments, what is being done)
Observer = Callable[[int, int, str], None]
# Called when an experiment has ended, with what there is by then; the last one is that.
Finished = Callable[[StudyReport], None]


def run_study(
    experiments: Sequence[str],
    *,
    model: str = "demo",
    held_out: Path,
    text: Path | None = None,
    calibrations: Sequence[str] = (),
    samples: int = DEFAULT_SAMPLES,
    salient: bool = True,
    max_tokens: int = MAX_TOKENS,
    device: str | None = None,
    observer: Observer | None = None,
    finished: Finished | None = None,
) -> StudyReport:
    """Run experiments, none named: all of them.

    model: a directory, a hub id, or "demo". held_out, text: UTF-8 files to score, of the model's
    own domain and of another. calibrations: texts as for `quantize`, "packaged" among them; the
    first calibrates everything but calibration-domain, which compares them. samples: of 512 tokens
    that are drawn of each, but where an experiment compares their number. salient: also measure
    the variant of `experiments.salient`. max_tokens: scored of each text. device: "cpu"
    (default), "cuda" or "cuda:N".
    Raises ConfigError for a name or a text that is missing, and what loading a model raises.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    names = _check_names(experiments)
    inputs = _inputs(names, held_out, text, calibrations, samples)
    where = torch_device(device or "cpu")
    found: list[ExperimentResult] = []

    def note(what: str) -> None:
        if observer is not None:
            observer(len(found), len(names), what)

    with scratch_directory("study") as folder:
        bench = Workbench(
            _variants(names, model, folder, salient=salient),
            device=where,
            calibration=inputs.calibrations[0],
            max_tokens=max_tokens,
            note=note,
        )
        for name in names:
            begun = time.perf_counter()
            rows = tuple(EXPERIMENTS[name](bench, inputs))
            seconds = time.perf_counter() - begun
            found.append(ExperimentResult(name=name, seconds=seconds, rows=rows))
            report = StudyReport(
                model=model_name(model),
                held_out=inputs.held_out.info,
                text=None if inputs.text is None else inputs.text.info,
                calibrations=tuple(each.label for each in inputs.calibrations),
                window=bench.window,
                stride=bench.stride,
                max_tokens=max_tokens,
                experiments=tuple(found),
                seconds=time.perf_counter() - started,
                cpu_seconds=time.process_time() - cpu_started,
                device=device_name(where),
                threads=torch.get_num_threads(),
                versions=versions(bench.packages),
                commit=source_commit(),
            )
            if finished is not None:
                finished(report)
    return report


def check_results(directory: Path, reads: Sequence[str | Path | None]) -> None:
    """Raise ConfigError when `write_results` would replace what is read or not a study's."""
    report = directory / "study.json"
    names = ["study.json", "study.md", *(f"study_{name}.svg" for name in EXPERIMENTS)]
    for path in (directory / name for name in names):
        require_apart(path, [("input", each) for each in reads])
        if path.exists() and read_own(report, "awq-edge-study") is None:
            raise ConfigError(
                f"--out {directory} holds {path.name}, which is no study's: choose another --out"
            )
    if os.path.lexists(directory) and not directory.is_dir():
        raise ConfigError(f"--out {directory} is a file; give the name of a folder")
    require_writable(directory)


def write_results(report: StudyReport, directory: Path) -> list[Path]:
    """study.json, study.md and a plot for each experiment, into `directory`; the files' paths."""
    from experiments.plots import write_plot

    directory.mkdir(parents=True, exist_ok=True)
    files = {"study.json": report.model_dump_json(indent=2) + "\n", "study.md": markdown(report)}
    for name, content in files.items():
        with atomic_file(directory / name) as work:
            work.write_text(content, encoding="utf-8")
    paths = [directory / name for name in files]
    for experiment in report.experiments:
        paths.append(directory / plot_name(experiment))
        write_plot(experiment, paths[-1])
    return paths


def markdown(report: StudyReport) -> str:
    """Every table with its plot."""
    parts = []
    for experiment in report.experiments:
        table = table_of(experiment)
        plot = f"![{experiment.name}]({plot_name(experiment)})"
        parts += [f"## {experiment.name}", f"{table.title}.", table.markdown(), plot]
    return "\n\n".join(parts) + "\n"


def plot_name(experiment: ExperimentResult) -> str:
    return f"study_{experiment.name}.svg"


def _check_names(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in EXPERIMENTS:
            close = difflib.get_close_matches(name, EXPERIMENTS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"no experiment {name}; {hint}there are {', '.join(EXPERIMENTS)}")
    # In the order in which they reuse each other's measurements.
    return [name for name in EXPERIMENTS if not names or name in names]


def _inputs(
    names: Sequence[str],
    held_out: Path,
    text: Path | None,
    calibrations: Sequence[str],
    samples: int,
) -> Inputs:
    sources = tuple(calibrations) or (PACKAGED,)
    if "calibration-domain" in names and len(sources) < 2:
        raise ConfigError(
            "calibration-domain compares calibration texts, and one is given; give two: "
            "--calibration packaged --calibration FILE, or name the other experiments: "
            f"{', '.join(name for name in EXPERIMENTS if name != 'calibration-domain')}"
        )
    return Inputs(
        held_out=Text.read(held_out),
        text=None if text is None else Text.read(text),
        calibrations=tuple(Calibration(source, samples) for source in sources),
    )


def _variants(names: Sequence[str], model: str, folder: Path, *, salient: bool) -> dict[str, Path]:
    path = resolve_model(model)
    checkpoint = Checkpoint.open(path)
    if checkpoint.quantization is not None:
        raise ModelError(f"{path} is quantized already; a study needs the model in 16 bits")
    decoder = checkpoint.decoder
    if any(decoder.has_experts(layer) for layer in range(decoder.num_layers)):
        raise ModelError(f"{path} is a mixture of experts; a study takes dense models")
    fixed = [name for name in names if name not in ANY_GROUP]
    for linear in (each for layer in range(decoder.num_layers) for each in decoder.linears(layer)):
        if fixed and linear.in_features % LARGEST_GROUP:
            raise ModelError(
                f"{path}: {linear.name} has {linear.in_features} in_features; {', '.join(fixed)} "
                f"take groups of {LARGEST_GROUP}, and need a model that they fit; name "
                f"{' or '.join(ANY_GROUP)}, which takes the largest that do"
            )
    variants = {"demo" if model == "demo" else "model": path}
    if salient:
        variants["salient"] = make_salient(path, folder / "salient")
    return variants
