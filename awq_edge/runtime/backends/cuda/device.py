"""The GPU that a session runs on: one stream, graphs captured on it, memory on both sides."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from awq_edge.errors import RuntimeUnavailableError

_ELSEWHERE = "run it on a machine that has one, or export with --runtime onnxruntime for a CPU"


class Device(Protocol):
    """Memory for tensors, and a stream that executes the work queued on it."""

    @property
    def torch_device(self) -> torch.device: ...

    @property
    def name(self) -> str: ...

    @property
    def stream(self) -> int:
        """Address of the cudaStream_t for kernels launched within `scope`."""
        ...

    def scope(self) -> contextlib.AbstractContextManager[None]:
        """A scope whose work is queued on the device's stream."""
        ...

    def host_tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeros in pinned host memory, which the device copies from and to directly."""
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

    def memory(self) -> tuple[int, int]:
        """Bytes of the device's memory: free, and all."""
        ...

    def copy_bandwidth(self) -> float | None:
        """Bytes/s that a copy within the device's memory reads and writes; None where there is no
        room to measure it."""
        ...


# The size of one copy: beyond every cache, and little enough to fit beside a model.
_COPY_BYTES = 256 << 20
_COPIES = 11


class CudaDevice:
    """One CUDA device with a stream of its own; see `Device`."""

    def __init__(self, index: int = 0) -> None:
        """Raises RuntimeUnavailableError where there is no GPU that torch can use."""
        if torch.version.cuda is None:
            raise RuntimeUnavailableError(
                f"runtime cuda needs torch with CUDA, torch {torch.__version__} has none; install "
                "a CUDA build of torch, or export with --runtime onnxruntime for a CPU"
            )
        if not torch.cuda.is_available():
            raise RuntimeUnavailableError(f"runtime cuda finds no NVIDIA GPU here; {_ELSEWHERE}")
        self.torch_device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]

    @property
    def name(self) -> str:
        name: str = torch.cuda.get_device_name(self.torch_device)
        return name

    @property
    def stream(self) -> int:
        # While a graph is captured, that is the stream of the capture.
        address: int = torch.cuda.current_stream(self.torch_device).cuda_stream
        return address

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with torch.cuda.device(self.torch_device), torch.cuda.stream(self._stream):
            yield

    def host_tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        with self.scope():
            work()  # libraries allocate their workspaces at the first call, which a capture refuses
            self.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                work()
        return graph.replay

    def memory(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return free, total

    def copy_bandwidth(self) -> float | None:
        seconds: list[float] = []
        with self.scope():
            try:
                source, target = (
                    torch.empty(_COPY_BYTES, dtype=torch.uint8, device=self.torch_device)
                    for _ in range(2)
                )
            except torch.cuda.OutOfMemoryError:
                return None
            for _ in range(_COPIES):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                begin.record()
                target.copy_(source)
                end.record()
                end.synchronize()
                seconds.append(begin.elapsed_time(end) / 1e3)
        return 2 * _COPY_BYTES / statistics.median(seconds)
