"""A full disk and a kill leave nothing half-written, and the next run continues the work."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import awq_edge
from awq_edge import artifacts
from awq_edge.errors import ConfigError, ResourceError
from awq_edge.quantizer import quantize_checkpoint
from awq_edge.quantizer.resume import BlockStore

from .conftest import build_model, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that its checkpoint does not fit a megabyte."""
    return save_model(
        build_model("llama", hidden_size=256, intermediate_size=768, num_hidden_layers=6),
        tmp_path_factory.mktemp("model"),
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(reason=f"mount does not start here: {error}")
    if mounted.returncode:
        pytest.skip(reason=f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_no_disk_space_is_known_before_the_work(model: Path, small_disk: Path) -> None:
    with pytest.raises(ResourceError, match=r"the checkpoint needs .* MB in .*, 1 MB are free"):
        awq_edge.quantize(model, small_disk / "out", method="rtn", group_size=32)
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line_and_costs_no_work(
    model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program took the space after the check; blocks that were finished stay."""
    from awq_edge.quantizer import stage

    monkeypatch.setattr(stage, "require_disk", lambda *_: None)
    with pytest.raises(ResourceError, match=r"filled up while out was made; .* are kept"):
        awq_edge.quantize(model, small_disk / "out", method="rtn", group_size=32)
    assert [path.name for path in small_disk.iterdir()] == [".out.resume"]
    finished = list((small_disk / ".out.resume").glob("*.json"))
    assert finished and not list((small_disk / ".out.resume").glob("*.partial*"))


def same_threads() -> dict[str, str]:
    """The environment of a process with as many torch threads as this one: with another number it
    would start over."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def run_and_kill(model: Path, out: Path, text: Path, method: str, blocks: int) -> None:
    """Quantize in a process that kills itself (SIGKILL) when `blocks` blocks are finished."""
    script = (
        "import os, signal, sys, awq_edge\n"
        "model, out, text, method, blocks = sys.argv[1:]\n"
        "def observe(done, total, what):\n"
        "    if done == int(blocks):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "awq_edge.quantize(model, out, method=method, group_size=32, calibration=text, samples=4,\n"
        "                  length=64, observer=observe)"
    )
    command = [sys.executable, "-c", script, str(model), str(out), str(text), method, str(blocks)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=same_threads()
    )
    assert result.returncode == -signal.SIGKILL, result.stderr


# A function that a run calls, and at which call of it the run kills itself.
MOMENTS = {
    "in the statistics pass": ("statistics.InputStatistics.add", 6),
    "in the search of a block": ("block_work.search_scale_group", 7),
    "between a block's tensors and its report": ("report.BlockReport.model_dump_json", 3),
    "before a shard is written": ("writer.CheckpointWriter._flush", 1),
    "before the checkpoint gets its name": ("stage.write_config", 1),
    "when the checkpoint has its name": ("resume.BlockStore.remove", 1),
}


def kill_in(model: Path, out: Path, text: Path, function: str, call: int) -> None:
    """Quantize in a process that kills itself (SIGKILL) when it calls a function for the n-th
    time."""
    script = (
        "import importlib, os, signal, sys, awq_edge\n"
        "model, out, text, function, call = sys.argv[1:]\n"
        "module, *names = function.split('.')\n"
        "owner = importlib.import_module('awq_edge.quantizer.' + module)\n"
        "for name in names[:-1]:\n"
        "    owner = getattr(owner, name)\n"
        "original, left = getattr(owner, names[-1]), [int(call)]\n"
        "def counted(*args, **options):\n"
        "    left[0] -= 1\n"
        "    if left[0] == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(*args, **options)\n"
        "setattr(owner, names[-1], counted)\n"
        "awq_edge.quantize(model, out, group_size=32, calibration=text, samples=4, length=64)"
    )
    command = [sys.executable, "-c", script, str(model), str(out), str(text), function, str(call)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=same_threads()
    )
    assert result.returncode == -signal.SIGKILL, result.stderr


def quantized(
    model: Path, out: Path, text: Path, method: str | None = None, *, resume: bool = True
) -> list[str]:
    """Quantize to the end; what the observer was told."""
    told: list[str] = []
    awq_edge.quantize(
        model,
        out,
        method=method,
        group_size=32,
        calibration=text,
        samples=4,
        length=64,
        resume=resume,
        observer=lambda done, total, what: told.append(what),
    )
    return told


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    whole, method = tmp_path / "whole", "awq+gptq"
    quantized(model, whole, calibration_text, method)
    out = tmp_path / "out"
    for blocks in (0, 3, 6):  # before the first, in between, before the end
        run_and_kill(model, out, calibration_text, method, blocks)
        assert not out.exists()
    told = quantized(model, out, calibration_text, method)
    assert told == [f"block {layer}, kept" for layer in range(6)] + ["writing"]
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_may_be_killed_at_any_moment(
    model: Path, calibration_text: Path, tmp_path: Path, moment: str
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    function, call = MOMENTS[moment]
    kill_in(model, out, calibration_text, function, call)
    assert (tmp_path / ".out.resume").exists()
    assert out.exists() == (moment == "when the checkpoint has its name")
    quantized(model, out, calibration_text)
    quantized(model, whole, calibration_text)
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_checkpoint_that_was_there_before_is_not_taken_for_the_new_one(
    model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """A run with --overwrite was killed; without it, the old checkpoint is safe."""
    out = tmp_path / "out"
    quantized(model, out, calibration_text, "rtn")
    before = (out / "model.safetensors").read_bytes()
    store = BlockStore(out, "key")
    store.close()
    with pytest.raises(ConfigError, match="exists; choose another --out or give --overwrite"):
        quantized(model, out, calibration_text, "awq")
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("stage", ["quantize", "export"])
def test_no_resume_starts_over(
    model: Path, calibration_text: Path, tmp_path: Path, stage: str
) -> None:
    """And keeps nothing: neither finished blocks nor, for an export, a finished checkpoint."""
    out = tmp_path / "out"
    options = {"method": "rtn", "group_size": 32}
    if stage == "export":
        options |= {"lm_head_bits": 16}

    def run(resume: bool, stop_at: str | None = None) -> list[str]:
        told: list[str] = []

        def observe(done: int, total: int, what: str) -> None:
            told.append(what)
            if stop_at is not None and what.startswith(stop_at):
                raise KeyboardInterrupt

        call = getattr(awq_edge, stage)
        call(model, out, calibration=calibration_text, resume=resume, observer=observe, **options)
        return told

    for stop_at in ("block 3", "writing weights") if stage == "export" else ("block 3", "writing"):
        with pytest.raises(KeyboardInterrupt):
            run(True, stop_at)
    assert run(False)[:6] == [f"block {layer}" for layer in range(6)]


def test_it_continues_in_the_block_that_it_was_in(
    model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    quantized(model, tmp_path / "whole", calibration_text, "awq")
    out = tmp_path / "out"
    run_and_kill(model, out, calibration_text, "awq", 3)
    told = quantized(model, out, calibration_text, "awq")
    assert told[:4] == ["block 0, kept", "block 1, kept", "block 2, kept", "block 3"]
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() == expected


def test_propagated_errors_survive_a_restart(
    model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """Where later blocks see quantized ones, a block that is passed over counts as stored."""
    recipe = awq_edge.load_recipe("cpu").overridden(
        {
            "quantization.group_size": 32,
            "calibration.samples": 4,
            "calibration.length": 64,
        }
    )

    def run(name: str, propagate_error: bool, stop_at: int | None = None) -> bytes:
        def observe(done: int, total: int, what: str) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        out = tmp_path / name
        quantize_checkpoint(
            model,
            out,
            recipe.overridden({"quantization.propagate_error": propagate_error}),
            model_name="model",
            calibration=calibration_text,
            observer=observe,
        )
        return (out / "model.safetensors").read_bytes()

    whole = run("whole", True)
    with pytest.raises(KeyboardInterrupt):
        run("resumed", True, stop_at=3)
    assert run("resumed", True) == whole
    assert run("plain", False) != whole


def test_other_settings_start_over(model: Path, calibration_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_and_kill(model, out, calibration_text, "rtn", 4)
    assert "block 0" in quantized(model, out, calibration_text, "awq")


def test_a_damaged_block_is_made_again(model: Path, calibration_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_and_kill(model, out, calibration_text, "rtn", 2)
    (tmp_path / ".out.resume" / "00001.json").write_text("{")
    told = quantized(model, out, calibration_text, "rtn")
    assert told[:3] == ["block 0, kept", "block 1", "block 2"]


def test_two_runs_do_not_share_a_folder(
    model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    store = BlockStore(out, "key")
    try:
        with pytest.raises(ConfigError, match=r"another run is making .* now"):
            quantized(model, out, calibration_text, "rtn")
    finally:
        store.remove()


def test_an_export_that_was_killed_reuses_its_checkpoint(
    model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """Killed between the two stages: the next export quantizes nothing."""
    bundle = tmp_path / "bundle"
    options = {"method": "rtn", "group_size": 32, "lm_head_bits": 16}

    def stop(done: int, total: int, what: str) -> None:
        if "weights" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        awq_edge.export(model, bundle, observer=stop, **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.checkpoint"]
    told: list[str] = []
    awq_edge.export(
        model,
        bundle,
        observer=lambda done, total, what: told.append(what),
        **options,  # type: ignore[arg-type]
    )
    assert not any(what.startswith("block") for what in told)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_overwriting_keeps_the_old_until_the_new_is_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    awq_edge.quantize(model, out, method="rtn", group_size=32)
    before = (out / "model.safetensors").read_bytes()

    def fail(directory: Path, final: Path, *, overwrite: bool) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(artifacts, "publish_directory", fail)
    with pytest.raises(OSError, match="Input/output error"):
        awq_edge.quantize(model, out, method="rtn", group_size=64, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.resume", "out"]
