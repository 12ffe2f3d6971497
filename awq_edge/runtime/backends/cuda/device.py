"""The GPU that a session runs on, as the executor needs it: memory by addresses, one stream,
graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

HostArray = npt.NDArray[Any]


class Device(Protocol):
    """Work is queued on the device's stream, within `scope`."""

    @property
    def name(self) -> str: ...

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that it is made of, by name."""
        ...

    @property
    def stream(self) -> int:
        """Address of the cudaStream_t for kernels launched within `scope`."""
        ...

    def scope(self) -> contextlib.AbstractContextManager[None]:
        """A scope whose work is queued on the device's stream."""
        ...

    def synchronize(self) -> None:
        """Wait for the queued work."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` once, and return a call that queues the same work again, at the cost of one
        launch.

        work: the same kernels on the same addresses every time; no copies from the host.
        """
        ...

    def zeros(self, size: int) -> int:
        """Address of `size` bytes of zeros, aligned to 256. Raises ResourceError."""
        ...

    def free(self, address: int) -> None:
        """Release memory of `zeros`."""
        ...

    def close(self) -> None:
        """Release all memory of `zeros`."""
        ...

    def host_zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> HostArray:
        """Zeros in pinned host memory, which the device copies from and to directly."""
        ...

    def upload(self, target: int, source: HostArray, pitch: int | None = None) -> None:
        """Queue a copy of contiguous host memory.

        pitch: bytes from row to row at the target, of a source with rows; None: contiguous too.
        """
        ...

    def download(self, target: HostArray, source: int, pitch: int | None = None) -> None:
        """Queue a copy to contiguous host memory; see `upload`."""
        ...

    def copy(self, target: int, source: int, size: int) -> None:
        """Queue a copy of `size` bytes within the device's memory."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes of the device's memory: free, and all."""
        ...

    def copy_bandwidth(self) -> float | None:
        """Bytes/s that a copy within the device's memory reads and writes; None where there is no
        room to measure it."""
        ...
