"""Quantizing on a Ray cluster: the same bytes, whatever happens to its workers and machines."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import awq_edge
from awq_edge.errors import ModelError, ResourceError, RuntimeUnavailableError
from awq_edge.quantizer import loop, quantize_checkpoint
from awq_edge.quantizer.blocks import work as block
from awq_edge.quantizer.cluster import ray_executor
from awq_edge.quantizer.cluster.options import ExecutorOptions
from awq_edge.quantizer.run_options import RunOptions

from . import worker_functions
from .conftest import build_model, save_model

pytest.importorskip("ray", reason="the ray extra is not installed")
pytestmark = pytest.mark.slow

STORE_BYTES = 80 << 20  # little more than the least that Ray takes
RAY = ExecutorOptions("ray")
MACHINE_LOST_SECONDS = 60
# For worker_functions.py, and for this package where it is not installed.
WORKER_PATH = [
    str(Path(__file__).parents[2]),
    str(Path(awq_edge.__file__).parents[1]),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that its tensors travel beside the pickle."""
    return save_model(
        build_model("llama", hidden_size=128, intermediate_size=256, num_hidden_layers=4),
        tmp_path_factory.mktemp("model"),
    )


class Machines:
    """A cluster of machines with one CPU each, as processes of this one; a head without any."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES},
        )
        self.address = self._cluster.address
        for _ in range(2):
            self.add()

    def add(self, **options: Any) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, **options)

    def remove(self, machine: Any) -> None:
        """As a power cut does."""
        self._cluster.remove_node(machine, allow_graceful=False)

    def named(self, name: str) -> Any:
        return next(node for node in self._cluster.worker_nodes if node.node_id == name)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """The cluster, with this process connected to it as a user's program may be."""
    import ray

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(worker_functions.FOLDER, str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(WORKER_PATH))
        started = Machines(folder)
        try:
            ray.init(started.address, log_to_driver=False)
            yield started
        finally:
            ray.shutdown()
            started.close()
            torch.set_num_threads(threads)


@pytest.fixture
def markers(machines: Machines) -> Iterator[Path]:
    """The folder in which workers note what has happened."""
    yield machines.folder
    for path in machines.folder.iterdir():
        path.unlink()


def quantized(
    model: Path,
    out: Path,
    text: Path,
    *,
    executor: ExecutorOptions,
    method: str = "awq",
    propagate_error: bool = False,
) -> bytes:
    """The weights of the checkpoint."""
    recipe = awq_edge.load_recipe("cpu").overridden(
        {
            "quantization.method": method,
            "quantization.group_size": 32,
            "quantization.propagate_error": propagate_error,
            "calibration.samples": 4,
            "calibration.length": 64,
        }
    )
    quantize_checkpoint(
        model,
        out,
        recipe,
        model_name="model",
        calibration=text,
        run=RunOptions(executor=executor),
    )
    return (out / "model.safetensors").read_bytes()


@pytest.fixture
def local(
    machines: Machines,  # whose number of threads counts
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
) -> Any:
    """The weights that this process makes by itself."""

    def made(**options: Any) -> bytes:
        out = tmp_path / "local"
        return quantized(model, out, calibration_text, executor=ExecutorOptions(), **options)

    return made


@pytest.mark.parametrize("propagate_error", [False, True])
@pytest.mark.parametrize("method", ["awq", "gptq", "awq+gptq"])
def test_the_bytes_are_those_of_this_process(
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
    local: Any,
    method: str,
    propagate_error: bool,
) -> None:
    options = {"method": method, "propagate_error": propagate_error}
    out = tmp_path / "ray"
    made = quantized(model, out, calibration_text, executor=RAY, **options)  # type: ignore[arg-type]
    assert made == local(**options)


def test_experts_travel_too(
    calibration_text: Path, tmp_path: Path, machines: Machines, markers: Path
) -> None:
    """Each is rounded by a task of its own."""
    model = save_model(build_model("mixtral"), tmp_path / "model")
    made = [
        quantized(
            model,
            tmp_path / executor.kind,
            calibration_text,
            executor=executor,
            method="awq+gptq",
            propagate_error=True,
        )
        for executor in (ExecutorOptions(), RAY)
    ]
    assert made[0] == made[1]


def test_blocks_are_in_work_together_on_both_machines(
    model: Path, calibration_text: Path, tmp_path: Path, machines: Machines
) -> None:
    """Three: one for each machine, and one that has run while they were busy."""
    device = torch.device("cpu")
    executor = ray_executor.RayExecutor(RAY, device, block_bytes=1 << 20)
    assert executor.width == 3
    executor.close()
    # What is in work fits the object store, and a flag has the last word.
    executor = ray_executor.RayExecutor(RAY, device, block_bytes=STORE_BYTES)
    assert executor.width == 1
    executor.close()
    executor = ray_executor.RayExecutor(ExecutorOptions("ray", ray_blocks=7), device, STORE_BYTES)
    assert executor.width == 7
    executor.close()


def test_a_worker_that_dies_in_a_block_is_replaced(
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
    local: Any,
    markers: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = local(method="awq+gptq")
    monkeypatch.setattr(loop, "quantize_block", worker_functions.die_in_block_1)
    made = quantized(model, tmp_path / "ray", calibration_text, executor=RAY, method="awq+gptq")
    assert (markers / "died").exists()
    assert made == expected


def test_a_worker_that_dies_rounding_a_linear_is_replaced(
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
    local: Any,
    markers: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"method": "awq+gptq", "propagate_error": True}
    expected = local(**options)
    monkeypatch.setattr(block, "round_linears", worker_functions.die_in_down_proj)
    out = tmp_path / "ray"
    made = quantized(model, out, calibration_text, executor=RAY, **options)  # type: ignore[arg-type]
    assert (markers / "died").exists()
    assert made == expected


def test_a_machine_that_is_lost_costs_only_time(
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
    local: Any,
    machines: Machines,
    markers: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removed = []

    def take_away() -> None:
        deadline = time.monotonic() + MACHINE_LOST_SECONDS
        while not (name := markers / "machine").exists() or not name.read_text():
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)
        machines.remove(machines.named(name.read_text()))
        removed.append(name)

    expected = local()
    monkeypatch.setattr(loop, "quantize_block", worker_functions.hang_on_one_machine)
    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        made = quantized(model, tmp_path / "ray", calibration_text, executor=RAY)
    finally:
        thread.join()
        machines.add()
    assert removed and made == expected


def test_a_task_that_kills_every_worker_is_given_up(
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
    machines: Machines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "quantize_block", worker_functions.always_die)
    with pytest.raises(ResourceError, match=r"block 0 was lost .*WorkerCrashed.* blocks are kept"):
        one_at_a_time = ExecutorOptions("ray", ray_blocks=1)
        quantized(model, tmp_path / "ray", calibration_text, executor=one_at_a_time)


def test_an_error_in_a_task_is_the_same_error_here(
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
    machines: Machines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "quantize_block", worker_functions.refuse_block_1)
    with pytest.raises(ModelError) as told:
        quantized(model, tmp_path / "ray", calibration_text, executor=RAY)
    assert type(told.value) is ModelError
    assert str(told.value) == "block 1 is not to be had; take another"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(loop, "quantize_block", worker_functions.divide_by_zero)
    with pytest.raises(ZeroDivisionError, match=r"^a defect$"):
        quantized(model, tmp_path / "ray", calibration_text, executor=RAY)


def test_a_worker_with_another_version_is_refused(
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
    machines: Machines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen from the worker's side: the driver says that it is the other one."""
    monkeypatch.setattr(ray_executor, "__version__", "9.9")
    with pytest.raises(
        RuntimeUnavailableError, match=r"has awq-edge \d+\.\d+.* \(the driver: 9\.9\); .* same awq"
    ):
        quantized(model, tmp_path / "ray", calibration_text, executor=RAY)


def test_a_machine_without_awq_edge_is_told_what_to_install(
    model: Path,
    calibration_text: Path,
    tmp_path: Path,
    machines: Machines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A third machine, the only one with enough CPUs, whose Python finds no awq_edge."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'awq_edge':\n"
        "            raise ModuleNotFoundError(f\"No module named '{name}'\", name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    bare = machines.add(resources={"bare": 1}, env_vars={"PYTHONPATH": str(tmp_path)})
    try:
        import ray

        monkeypatch.setattr(
            ray, "remote", lambda _remote=ray.remote, **o: _remote(**o, resources={"bare": 1})
        )
        with pytest.raises(
            RuntimeUnavailableError,
            match=r"worker cannot run awq-edge .*No module.*awq_edge.*ray\]",
        ):
            quantized(model, tmp_path / "ray", calibration_text, executor=RAY)
    finally:
        machines.remove(bare)


def test_a_cluster_without_room_for_a_task_is_refused_at_once(
    model: Path, calibration_text: Path, tmp_path: Path, machines: Machines
) -> None:
    torch.set_num_threads(5)
    try:
        with pytest.raises(RuntimeUnavailableError, match=r"a task needs 5 CPU and no machine .*1"):
            quantized(model, tmp_path / "ray", calibration_text, executor=RAY)
    finally:
        torch.set_num_threads(1)


def test_the_workers_are_processes_of_their_own(machines: Machines) -> None:
    """Else the tests above would show nothing."""
    import ray

    pids = ray.get([ray.remote(num_cpus=1)(lambda: os.getpid()).remote() for _ in range(2)])
    assert os.getpid() not in pids
