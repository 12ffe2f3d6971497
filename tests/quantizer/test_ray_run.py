"""Runs that start a Ray cluster of their own: they are quiet, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import awq_edge
from awq_edge.errors import ConfigError, RuntimeUnavailableError
from awq_edge.process.staging import hold
from awq_edge.quantizer import quantize_checkpoint
from awq_edge.quantizer.cluster.options import ExecutorOptions
from awq_edge.quantizer.cluster.ray_cluster import remove_abandoned

from .conftest import build_model, save_model

START_SECONDS = 120
# Ray's agents look for their raylet now and then, and report its death to a server that is gone.
AGENTS_GONE_SECONDS = 180
FLAGS = ["--group-size", "32", "--samples", "4", "--length", "64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(
        build_model("llama", hidden_size=128, intermediate_size=256, num_hidden_layers=5),
        tmp_path_factory.mktemp("model"),
    )


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where clusters of this test live. Short: Ray's sockets are in it."""
    pytest.importorskip("ray", reason="the ray extra is not installed")
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[str]:
    """Processes with an open file in the folder, as their logs are."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            if any(link.startswith(f"{folder}/") for link in links):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended
            continue
    return found


def command(model: Path, out: Path, text: Path, *flags: str) -> list[str]:
    script = "from awq_edge.cli import main; main()"
    arguments = [str(model), "--out", str(out), "--calibration", str(text), *FLAGS, *flags]
    return [sys.executable, "-c", script, "quantize", *arguments]


def quantize_locally(model: Path, out: Path, text: Path) -> bytes:
    """The weights, made with one thread as the runs of `ray_folder` make them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(model, out, text), check=True, capture_output=True, env=environment)
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected(
    model: Path, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The weights of `model` without Ray."""
    return quantize_locally(model, tmp_path_factory.mktemp("local") / "out", calibration_text)


@pytest.mark.slow
def test_the_command_line_says_nothing_of_ray(
    model: Path, expected: bytes, calibration_text: Path, tmp_path: Path, ray_folder: Path
) -> None:
    out = tmp_path / "out"
    run = command(model, out, calibration_text, "--executor", "ray")
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (out / "model.safetensors").read_bytes() == expected
    assert "35 linears in 4-bit refined" in result.stdout
    assert "ray" not in result.stderr.lower() and "warn" not in result.stderr.lower()
    assert "ray" not in result.stdout.lower().replace(str(tmp_path).lower(), "")
    assert processes_of(ray_folder) == [] and list(ray_folder.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_ends_the_cluster_and_the_next_run_continues(
    model: Path, expected: bytes, calibration_text: Path, tmp_path: Path, ray_folder: Path
) -> None:
    out = tmp_path / "out"
    run = command(model, out, calibration_text, "--executor", "ray")
    # A session of its own: SIGINT goes to all of its processes, as a terminal sends it. What was
    # started in a shell's background ignores SIGINT, and so would its children.
    process = subprocess.Popen(
        run,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + START_SECONDS
    while not list(tmp_path.glob(".out.resume/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in told and "ray" not in told
    assert processes_of(ray_folder) == [] and list(ray_folder.iterdir()) == []
    # The result does not depend on the executor, so any may go on.
    assert quantize_locally(model, out, calibration_text) == expected


@pytest.mark.slow
def test_a_driver_that_was_killed_is_resumed(
    model: Path, expected: bytes, calibration_text: Path, tmp_path: Path, ray_folder: Path
) -> None:
    out = tmp_path / "out"
    script = (
        "import os, signal, sys, awq_edge\n"
        "model, out, text, stop = sys.argv[1:]\n"
        "def observe(done, total, what):\n"
        "    print(what)\n"
        "    if what == stop:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "recipe = awq_edge.load_recipe(group_size=32, samples=4, length=64)\n"
        "run = awq_edge.RunOptions(executor='ray', observer=observe)\n"
        "awq_edge.quantize(model, out, recipe, calibration=text, run=run)\n"
    )

    def run(stop: str) -> subprocess.CompletedProcess[str]:
        arguments = [str(model), str(out), str(calibration_text), stop]
        return subprocess.run(
            [sys.executable, "-u", "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )

    assert run("block 4").returncode == -signal.SIGKILL
    assert not out.exists()
    deadline = time.monotonic() + AGENTS_GONE_SECONDS
    while processes_of(ray_folder) and time.monotonic() < deadline:
        time.sleep(1)
    assert processes_of(ray_folder) == []
    again = run("never")
    assert again.returncode == 0
    # At least the first: "block 4" starts when it is there, while others are in work.
    assert again.stdout.startswith("block 0, kept\n") and "block 4\n" in again.stdout
    assert (out / "model.safetensors").read_bytes() == expected
    assert list(ray_folder.iterdir()) == []  # the killed run's folder is gone too


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("propagate_error", [False, True])
def test_a_gpu_that_two_workers_share_gives_the_bytes_of_one(
    model: Path, calibration_text: Path, tmp_path: Path, ray_folder: Path, propagate_error: bool
) -> None:
    recipe = awq_edge.load_recipe("cpu").overridden(
        {
            "quantization.method": "awq+gptq",
            "quantization.group_size": 32,
            "quantization.propagate_error": propagate_error,
            "calibration.samples": 4,
            "calibration.length": 64,
        }
    )
    made = []
    for executor in (ExecutorOptions(), ExecutorOptions("ray", ray_gpus=0.5)):
        out = tmp_path / executor.kind
        quantize_checkpoint(
            model,
            out,
            recipe,
            model_name="model",
            calibration=calibration_text,
            run=awq_edge.RunOptions("cuda", executor),
        )
        made.append((out / "model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_folders_of_killed_drivers_go_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    """Told by their lock: a number in a name may be another process's by then."""
    for name in ("awq-edge-ray-x", "awq-edge-ray-y", "ray"):
        (tmp_path / name).mkdir()
    lock = hold(tmp_path / "awq-edge-ray-y")
    assert lock is not None
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["awq-edge-ray-y", "ray"]
    os.close(lock)
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ray"]


@pytest.mark.slow
def test_an_address_where_nothing_answers_is_one_line(
    model: Path, calibration_text: Path, tmp_path: Path, ray_folder: Path
) -> None:
    flags = ["--executor", "ray", "--ray-address", "127.0.0.1:9"]
    run = command(model, tmp_path / "out", calibration_text, *flags)
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: --ray-address 127.0.0.1:9: no Ray cluster"), result.stderr
    assert "ray start --head" in last


def test_ray_that_is_not_installed_is_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'awq-edge\[ray\]'"):
        awq_edge.quantize(model, tmp_path / "out", run=awq_edge.RunOptions(executor="ray"))
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'awq-edge\[ray\]'"):
        awq_edge.export(model, tmp_path / "out", run=awq_edge.RunOptions(executor="ray"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dask"}, r"--executor dask: allowed values: local, ray"),
        ({"ray_blocks": 0}, r"--ray-blocks 0: at least 1"),
        ({"ray_gpus": 0.0}, r"--ray-gpus 0: a share of a GPU"),
        ({"ray_gpus": 2.0}, r"--ray-gpus 2: a share of a GPU"),
        ({"ray_address": "ray://head:10001"}, r"must run on a machine of the cluster"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExecutorOptions(**options)  # type: ignore[arg-type]
