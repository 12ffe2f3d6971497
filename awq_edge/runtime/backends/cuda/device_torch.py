"""The device in torch: memory and copies, one stream, graphs captured on it."""

from __future__ import annotations

import bisect
import contextlib
import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch

from awq_edge.errors import RuntimeUnavailableError
from awq_edge.runtime.backends.cuda.device import HostArray

_ELSEWHERE = "run it on a machine that has one, or export with --runtime onnxruntime for a CPU"


# The size of one copy: beyond every cache, and little enough to fit beside a model.
_COPY_BYTES = 256 << 20
_COPIES = 11


class CudaDevice:
    """One CUDA device with a stream of its own; see `awq_edge.runtime.backends.cuda.device.Device`.

    Memory is blocks of bytes that torch allocates; an address is found in the one that it lies in.
    """

    def __init__(self, index: int = 0) -> None:
        """Raises RuntimeUnavailableError where there is no GPU that torch can use."""
        if torch.version.cuda is None:
            raise RuntimeUnavailableError(
                f"runtime cuda needs torch with CUDA, torch {torch.__version__} has none; install "
                "a CUDA build of torch, or export with --runtime onnxruntime for a CPU"
            )
        if not torch.cuda.is_available():
            raise RuntimeUnavailableError(f"runtime cuda finds no NVIDIA GPU here; {_ELSEWHERE}")
        self._device = torch.device("cuda", index)
        self._blocks: dict[int, torch.Tensor] = {}
        self._addresses: list[int] = []  # of the blocks, ascending
        self._pinned: list[torch.Tensor] = []
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @property
    def name(self) -> str:
        name: str = torch.cuda.get_device_name(self._device)
        return name

    @property
    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}

    @property
    def stream(self) -> int:
        # While a graph is captured, that is the stream of the capture.
        address: int = torch.cuda.current_stream(self._device).cuda_stream
        return address

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def zeros(self, size: int) -> int:
        with self.scope():
            block = torch.zeros(max(size, 1), dtype=torch.uint8, device=self._device)
        address: int = block.data_ptr()
        self._blocks[address] = block
        bisect.insort(self._addresses, address)
        return address

    def free(self, address: int) -> None:
        del self._blocks[address]
        self._addresses.remove(address)

    def close(self) -> None:
        self._blocks.clear()
        self._addresses.clear()
        self._pinned.clear()

    def host_zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> HostArray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._pinned.append(torch.zeros(size, dtype=torch.uint8, pin_memory=True))
        array: HostArray = self._pinned[-1].numpy().view(dtype).reshape(shape)
        return array

    def upload(self, target: int, source: HostArray, pitch: int | None = None) -> None:
        host = torch.from_numpy(source.view(np.uint8))
        self.octets(target, host.shape, pitch).copy_(host, non_blocking=True)

    def download(self, target: HostArray, source: int, pitch: int | None = None) -> None:
        host = torch.from_numpy(target.view(np.uint8))
        host.copy_(self.octets(source, host.shape, pitch), non_blocking=True)

    def copy(self, target: int, source: int, size: int) -> None:
        self.octets(target, (size,)).copy_(self.octets(source, (size,)))

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

    def octets(
        self, address: int, shape: tuple[int, ...], pitch: int | None = None
    ) -> torch.Tensor:
        """Bytes at an address, as a tensor. pitch: bytes from row to row, of a shape with rows."""
        base = self._addresses[bisect.bisect_right(self._addresses, address) - 1]
        block, offset = self._blocks[base], address - base
        if pitch is not None:
            return torch.as_strided(block, shape, (pitch, 1), offset)
        return block[offset : offset + int(np.prod(shape))].view(shape)

    def memory(self) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(self._device)
        return free, total

    def copy_bandwidth(self) -> float | None:
        seconds: list[float] = []
        with self.scope():
            try:
                source, target = (
                    torch.empty(_COPY_BYTES, dtype=torch.uint8, device=self._device)
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
