"""The Ray cluster of a run: one that is there, or one that lasts as long as the run."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_edge.errors import RuntimeUnavailableError
from awq_edge.process.staging import hold

# Share of the driver's object store that blocks in work may fill; beyond it Ray goes to disk.
_STORE_SHARE = 0.8
_OOM_RETRIES = 3  # of a task that Ray ended for want of memory; its own default is to try for ever
_KNOCK_SECONDS = 10
_PREFIX = "awq-edge-ray"


@dataclass(frozen=True)
class Cluster:
    """A connection. folder: of the cluster that this process started, else None. connected: by this
    process, which then disconnects. lock: descriptor that holds the folder."""

    folder: Path | None
    connected: bool
    lock: int | None = None

    def close(self) -> None:
        """Disconnect; end the cluster if this process started it."""
        import ray

        if self.connected:
            ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)


def connect(address: str | None) -> Cluster:
    """Connect to the cluster at `address` or $RAY_ADDRESS, or start one on this machine.

    A connection that the process has already is used as it is.
    Raises RuntimeUnavailableError where no cluster answers or none can be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else a warning for every run without a GPU, about a default that is to change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return Cluster(None, connected=False)
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        try:
            _knock(address)
            ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise RuntimeUnavailableError(
                f"--ray-address {address}: no Ray cluster of this Ray version ({ray.__version__}) "
                f"answers: {_first_line(error)}; start one with `ray start --head`, and name its "
                "address and port"
            ) from None
        return Cluster(None, connected=True)
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    remove_abandoned(base)
    # A short name: Ray puts sockets below it, whose paths have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}-", dir=base))
    cluster = Cluster(folder, connected=True, lock=hold(folder))
    try:
        ray.init(
            address="local",  # never one that happens to run here
            include_dashboard=False,
            _temp_dir=str(folder),
            _system_config={"task_oom_retries": _OOM_RETRIES},
            **quiet,
        )
    except BaseException as error:
        cluster.close()
        if isinstance(error, Exception):
            raise RuntimeUnavailableError(
                f"no Ray cluster could be started on this machine: {_first_line(error)}; use "
                "--executor local, or --ray-address of one that runs"
            ) from error
        raise
    return cluster


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


def remove_abandoned(base: Path) -> None:
    """Remove the folders of clusters whose driver was killed: what they spilled may be large."""
    for path in base.glob(f"{_PREFIX}-*"):
        with contextlib.suppress(OSError):
            lock = hold(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def count_slots(demand: Mapping[str, float]) -> int:
    """Tasks of this demand that the cluster's machines can run at a time.

    demand: {"CPU": 2}, {"CPU": 1, "GPU": 0.5}. Raises RuntimeUnavailableError where no machine can
    run one.
    """
    machines = [node["Resources"] for node in _alive()]
    slots = sum(
        int(min(machine.get(name, 0) / amount for name, amount in demand.items()))
        for machine in machines
    )
    if slots == 0:
        words = " and ".join(f"{amount:g} {name}" for name, amount in demand.items())
        has = "; ".join(
            ", ".join(f"{machine.get(name, 0):g} {name}" for name in demand) for machine in machines
        )
        raise RuntimeUnavailableError(
            f"a task needs {words} and no machine of the Ray cluster has them ({has}); its CPUs "
            "are the driver's torch threads: set OMP_NUM_THREADS, or start a larger machine"
        )
    return slots


def blocks_that_fit(block_bytes: int) -> int:
    """Blocks whose weights and statistics fit the object store of the driver's machine."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    store = next(n["Resources"] for n in _alive() if n["NodeID"] == here)["object_store_memory"]
    return max(1, int(_STORE_SHARE * store / max(block_bytes, 1)))


def _alive() -> list[Any]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
