"""A full disk and a kill leave nothing half-written, and the next run continues the work."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import awq_edge
from awq_edge.artifacts import directories as artifacts
from awq_edge.errors import ConfigError, ResourceError
from awq_edge.quantizer import quantize_checkpoint
from awq_edge.quantizer.checkpoint.resume import BlockStore
from awq_edge.recipe.recipes import load_recipe

from .conftest import build_model, save_model
from .killed_runs import SETTINGS, kill_in, run_and_kill


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that its checkpoint does not fit a megabyte."""
    return save_model(
        build_model("llama", hidden_size=256, intermediate_size=768, num_hidden_layers=6),
        tmp_path_factory.mktemp("model"),
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many blocks, quickly quantized."""
    return save_model(
        build_model("llama", hidden_size=64, intermediate_size=128, num_hidden_layers=6),
        tmp_path_factory.mktemp("small-model"),
    )


@pytest.fixture(scope="module")
def whole(
    small: Path, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of `small`, quantized by AWQ without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    quantized(small, out, calibration_text, "awq")
    return {file: (out / file).read_bytes() for file in ("model.safetensors", "config.json")}


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
    with pytest.raises(ResourceError, match=r"the checkpoint needs .* MB in .*, .* [kM]B are free"):
        awq_edge.quantize(model, small_disk / "out", load_recipe(method="rtn", group_size=32))
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line_and_costs_no_work(
    model: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program took the space after the check; blocks that were finished stay."""
    from awq_edge.quantizer import stage

    monkeypatch.setattr(stage, "require_disk", lambda *_: None)
    with pytest.raises(ResourceError, match=r"filled up while out was made; .* are kept"):
        awq_edge.quantize(model, small_disk / "out", load_recipe(method="rtn", group_size=32))
    assert [path.name for path in small_disk.iterdir()] == [".out.resume"]
    finished = list((small_disk / ".out.resume").glob("*.json"))
    assert finished and not list((small_disk / ".out.resume").glob("*.partial*"))


# A function that a run calls, and at which call of it the run kills itself.
MOMENTS = {
    "in the statistics pass": ("calibration.statistics:InputStatistics.add", 6),
    "in the search of a block": ("blocks.work:search_scale_group", 7),
    "between a block's tensors and its report": ("report.schema:BlockReport.model_dump_json", 3),
    "before a shard is written": ("checkpoint.writer:CheckpointWriter._flush", 1),
    "before the checkpoint gets its name": ("stage:write_config", 1),
    "when the checkpoint has its name": ("checkpoint.resume:BlockStore.remove", 1),
}


def quantized(
    model: Path, out: Path, text: Path, method: str | None = None, *, resume: bool = True
) -> list[str]:
    """Quantize to the end; what the observer was told."""
    told: list[str] = []
    awq_edge.quantize(
        model,
        out,
        load_recipe(method=method, **SETTINGS),
        calibration=text,
        run=awq_edge.RunOptions(
            resume=resume, observer=lambda done, total, what: told.append(what)
        ),
    )
    return told


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    small: Path, calibration_text: Path, tmp_path: Path
) -> None:
    whole, method = tmp_path / "whole", "awq+gptq"
    quantized(small, whole, calibration_text, method)
    out = tmp_path / "out"
    for blocks in (0, 3, 6):  # before the first, in between, before the end
        run_and_kill(small, out, calibration_text, method, blocks)
        assert not out.exists()
    told = quantized(small, out, calibration_text, method)
    assert told == [f"block {layer}, kept" for layer in range(6)] + ["writing"]
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_may_be_killed_at_any_moment(
    small: Path, whole: dict[str, bytes], calibration_text: Path, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"
    function, call = MOMENTS[moment]
    kill_in(small, out, calibration_text, function, call)
    assert (tmp_path / ".out.resume").exists()
    assert out.exists() == (moment == "when the checkpoint has its name")
    quantized(small, out, calibration_text, "awq")
    for file, content in whole.items():
        assert (out / file).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_that_was_there_before_is_not_taken_for_the_new_one(
    small: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """A run with --overwrite was killed; without it, the old checkpoint is safe."""
    out = tmp_path / "out"
    quantized(small, out, calibration_text, "rtn")
    before = (out / "model.safetensors").read_bytes()
    store = BlockStore(out, "key")
    store.close()
    with pytest.raises(ConfigError, match="exists; choose another --out or give --overwrite"):
        quantized(small, out, calibration_text, "awq")
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("stage", ["quantize", "export"])
def test_no_resume_starts_over(
    small: Path, calibration_text: Path, tmp_path: Path, stage: str
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
        call(small, out, calibration=calibration_text, resume=resume, observer=observe, **options)
        return told

    for stop_at in ("block 3", "writing weights") if stage == "export" else ("block 3", "writing"):
        with pytest.raises(KeyboardInterrupt):
            run(True, stop_at)
    assert run(False)[:6] == [f"block {layer}" for layer in range(6)]


@pytest.mark.parametrize("method", ["awq", "refined"])
def test_it_continues_in_the_block_that_it_was_in(
    small: Path, calibration_text: Path, tmp_path: Path, method: str
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    quantized(small, whole, calibration_text, method)
    run_and_kill(small, out, calibration_text, method, 3)
    told = quantized(small, out, calibration_text, method)
    assert told[:4] == ["block 0, kept", "block 1, kept", "block 2, kept", "block 3"]
    stored = [(folder / "model.safetensors").read_bytes() for folder in (whole, out)]
    assert stored[0] == stored[1]


def test_propagated_errors_survive_a_restart(
    small: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """Where later blocks see quantized ones, a block that is passed over counts as stored."""
    recipe = load_recipe("cpu").overridden(
        {
            "quantization.method": "awq",  # refined has both streams, whatever the key says
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
            small,
            out,
            recipe.overridden({"quantization.propagate_error": propagate_error}),
            model_name="model",
            calibration=calibration_text,
            run=awq_edge.RunOptions(observer=observe),
        )
        return (out / "model.safetensors").read_bytes()

    whole = run("whole", True)
    with pytest.raises(KeyboardInterrupt):
        run("resumed", True, stop_at=3)
    assert run("resumed", True) == whole
    assert run("plain", False) != whole


def test_other_settings_start_over(small: Path, calibration_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_and_kill(small, out, calibration_text, "rtn", 4)
    assert "block 0" in quantized(small, out, calibration_text, "awq")


def test_a_damaged_block_is_made_again(small: Path, calibration_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_and_kill(small, out, calibration_text, "rtn", 2)
    (tmp_path / ".out.resume" / "00001.json").write_text("{")
    told = quantized(small, out, calibration_text, "rtn")
    assert told[:3] == ["block 0, kept", "block 1", "block 2"]


def test_two_runs_do_not_share_a_folder(
    small: Path, calibration_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    store = BlockStore(out, "key")
    try:
        with pytest.raises(ConfigError, match=r"another run is making .* now"):
            quantized(small, out, calibration_text, "rtn")
    finally:
        store.remove()


def test_an_export_that_was_killed_reuses_its_checkpoint(
    small: Path, calibration_text: Path, tmp_path: Path
) -> None:
    """Killed between the two stages: the next export quantizes nothing."""
    bundle = tmp_path / "bundle"
    recipe = load_recipe(method="rtn", group_size=32, lm_head_bits=16)

    def stop(done: int, total: int, what: str) -> None:
        if "weights" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        awq_edge.export(small, bundle, recipe, run=awq_edge.RunOptions(observer=stop))
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.checkpoint"]
    told: list[str] = []
    observer = lambda done, total, what: told.append(what)  # noqa: E731
    awq_edge.export(small, bundle, recipe, run=awq_edge.RunOptions(observer=observer))
    assert not any(what.startswith("block") for what in told)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_overwriting_keeps_the_old_until_the_new_is_whole(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    awq_edge.quantize(small, out, load_recipe(method="rtn", group_size=32))
    before = (out / "model.safetensors").read_bytes()

    def fail(directory: Path, final: Path, *, overwrite: bool) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(artifacts, "publish_directory", fail)
    with pytest.raises(OSError, match="Input/output error"):
        awq_edge.quantize(
            small,
            out,
            load_recipe(method="rtn", group_size=64),
            run=awq_edge.RunOptions(overwrite=True),
        )
    assert (out / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.resume", "out"]
