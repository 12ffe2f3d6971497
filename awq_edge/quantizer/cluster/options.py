"""Which executor works on the blocks; nothing heavy, because the command line names it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from awq_edge.errors import ConfigError, RuntimeUnavailableError

_KINDS = ("local", "ray")


@dataclass(frozen=True)
class ExecutorOptions:
    """Which executor, and how. The result does not depend on it.

    kind: local or ray. ray_address: of a running cluster; None for $RAY_ADDRESS, and without that a
    cluster on this machine for the time of the run. ray_blocks: blocks in work at a time, None for
    as many as the cluster and the object store have room for. ray_gpus: share of a GPU that a task
    gets, where the run's device is a GPU.
    Raises ConfigError for what cannot be, RuntimeUnavailableError where ray is missing.
    """

    kind: str = "local"
    ray_address: str | None = None
    ray_blocks: int | None = None
    ray_gpus: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"--executor {self.kind}: allowed values: {', '.join(_KINDS)}")
        if self.ray_blocks is not None and self.ray_blocks < 1:
            raise ConfigError(f"--ray-blocks {self.ray_blocks}: at least 1 block is in work")
        if not 0 < self.ray_gpus <= 1:
            raise ConfigError(f"--ray-gpus {self.ray_gpus:g}: a share of a GPU, above 0, at most 1")
        if self.ray_address is not None and self.ray_address.startswith("ray://"):
            raise ConfigError(
                f"--ray-address {self.ray_address}: the driver must run on a machine of the "
                "cluster, where its objects are kept; join with `ray start --address=HEAD:6379` "
                "and give that address"
            )
        if self.kind == "ray" and not _is_installed("ray"):
            raise RuntimeUnavailableError(
                "--executor ray needs ray, which is not installed; install the 'ray' extra: "
                "pip install 'awq-edge[ray]'"
            )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # so it is for one that was imported and taken out again
        return False


LOCAL = ExecutorOptions()
