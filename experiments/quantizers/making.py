"""Makes the weights of a row: by this package in this process, or by a peer in another one."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.numpy import save_file

import awq_edge
from awq_edge._package import PACKAGE
from awq_edge.artifacts.provenance import versions
from awq_edge.device.torch_device import device_name, torch_device
from awq_edge.errors import ConfigError, ModelError
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.process import children
from awq_edge.quantizer.calibration.text import CalibrationSet, load_calibration
from awq_edge.recipe.recipes import Recipe
from awq_edge.runtime.tokenizer import Tokenizer
from experiments.quantizers.result import CalibrationTokens, MadeModel
from experiments.quantizers.rows import BundleRow, OwnRow, PeerRow, Row, rows

_PEERS = PACKAGE.parent / "scripts" / "peers"
_PACKAGES = ("numpy", "torch", "transformers")
_LAST_LINES = 12  # of a peer's messages, where it fails


@dataclass(frozen=True)
class Setting:
    """The same for every row.

    model: directory, unquantized. calibration: text of all rows but the default's.
    work: folder of the weights that are made. steps: of peers that learn.
    peer_python: interpreter of the peers, None where there is none.
    """

    model: Path
    work: Path
    calibration: Path
    samples: int
    length: int
    seed: int
    group_size: int
    steps: int
    device: str
    peer_python: Path | None

    def calibration_set(self) -> CalibrationSet:
        """The ids that every calibrated row sees; deterministic."""
        return load_calibration(
            self.calibration,
            Tokenizer(self.model),
            samples=self.samples,
            length=self.length,
            seed=self.seed,
            max_positions=Checkpoint.open(self.model).decoder.max_positions,
        )


def make(name: str, row: Row, setting: Setting) -> tuple[Path, MadeModel]:
    """The directory of a row's weights; a checkpoint that is there is taken as it is.

    Raises ConfigError where a peer has no interpreter, ModelError where it fails.
    """
    out = setting.work / name
    record = setting.work / f"{name}.json"
    if not record.exists():
        shutil.rmtree(out, ignore_errors=True)
        made = _maker(row)(out, setting)
        record.write_text(made.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return out, MadeModel.model_validate_json(record.read_text(encoding="utf-8"))


def _maker(row: Row) -> Callable[[Path, Setting], MadeModel]:
    if isinstance(row, OwnRow):
        return lambda out, setting: _quantize(row, out, setting)
    if isinstance(row, BundleRow):
        return lambda out, setting: _export(row, out, setting)
    return lambda out, setting: _run_peer(row, out, setting)


def _quantize(row: OwnRow, out: Path, setting: Setting) -> MadeModel:
    started = time.perf_counter()
    result = awq_edge.quantize(
        setting.model,
        out,
        _recipe(row, setting),
        calibration=setting.calibration if row.calibrated else None,
        run=awq_edge.RunOptions(device=setting.device, resume=False),
    )
    seconds = time.perf_counter() - started
    used = result.report.calibration
    return MadeModel(
        bits_per_weight=bits_per_weight(out),
        seconds=seconds,
        device=device_name(torch_device(setting.device)),
        calibration=None
        if used is None
        else CalibrationTokens(
            source=used.source, samples=used.samples, length=used.length, sha256=used.sha256
        ),
        versions=versions(_PACKAGES),
    )


def _recipe(row: OwnRow, setting: Setting) -> Recipe:
    if row.method is None:  # as it is typed without thinking
        return awq_edge.load_recipe("cpu", bits=row.bits, group_size=setting.group_size)
    return awq_edge.load_recipe(
        "cpu",
        method=row.method,
        bits=row.bits,
        group_size=setting.group_size,
        lm_head_bits=16,
        samples=setting.samples,
        length=setting.length,
        seed=setting.seed,
    )


def _export(row: BundleRow, out: Path, setting: Setting) -> MadeModel:
    checkpoint, made = make(row.checkpoint, rows()[row.checkpoint], setting)
    started = time.perf_counter()
    recipe = awq_edge.load_recipe(
        "cpu", accuracy_level=row.accuracy_level, lm_head_bits=row.lm_head_bits
    )
    awq_edge.export(checkpoint, out, recipe)
    return MadeModel(
        bits_per_weight=made.bits_per_weight,
        seconds=time.perf_counter() - started,
        device=device_name(torch.device("cpu")),
        calibration=made.calibration,
        versions=versions((*_PACKAGES, "onnx", "onnxruntime")),
    )


def _run_peer(row: PeerRow, out: Path, setting: Setting) -> MadeModel:
    """Have a peer write a plain model to `out`, with peer.json: see `scripts/peers/`."""
    if setting.peer_python is None:
        raise ConfigError(
            f"{row.label} runs in an interpreter of its own; give --peer-python, or leave its rows "
            "out with --only"
        )
    drawn = setting.calibration_set()
    ids = setting.work / f"{out.name}.calibration.safetensors"
    save_file({"ids": drawn.ids}, ids)
    command: list[str | Path] = [setting.peer_python, _PEERS / row.script]
    command += ["--model", setting.model, "--out", out]
    command += ["--calibration", ids, "--group-size", str(setting.group_size)]
    command += ["--steps", str(setting.steps), "--device", setting.device, *row.options]
    log = setting.work / f"{out.name}.log"
    with (
        log.open("w", encoding="utf-8") as lines,
        children.child(command, stdout=lines, stderr=subprocess.STDOUT) as process,
    ):
        code = process.wait()
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        raise ModelError(f"{row.label} ended with {code}; {log}:\n" + "\n".join(last))
    found = json.loads((out / "peer.json").read_text(encoding="utf-8"))
    return MadeModel(
        bits_per_weight=found["bits_per_weight"],
        seconds=found["seconds"],
        device=device_name(torch_device(found["device"])),
        calibration=CalibrationTokens(
            source=drawn.source,
            samples=drawn.ids.shape[0],
            length=drawn.ids.shape[1],
            sha256=drawn.sha256,
        ),
        versions=found["versions"],
    )


def bits_per_weight(path: Path) -> float:
    """Mean over the linears of a checkpoint's blocks: codes, a float16 scale a group and, where the
    scheme has them, a zero point of as many bits as a code; 16 bits where a linear was left."""
    checkpoint = Checkpoint.open(path)
    bits = weights = 0.0
    for layer in range(checkpoint.decoder.num_layers):
        for linear in checkpoint.decoder.linears(layer):
            name = f"{checkpoint.decoder.layer_prefix(layer)}.{linear.name}"
            count = linear.in_features * linear.out_features
            each = 16.0
            if checkpoint.is_quantized(name):
                form = checkpoint.linear_format(name)
                zero = form.bits if form.scheme == "asymmetric" else 0
                each = form.bits + (16 + zero) / form.group_size
            bits, weights = bits + each * count, weights + count
    return bits / weights
