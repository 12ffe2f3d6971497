"""Buffers that know their owner: device and page-locked memory, released together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_edge.device.layer import ALIGNMENT, DeviceLayer, HostBytes
from awq_edge.errors import AwqEdgeError


class Owned:
    """Acquired resources, to be released in the reverse order, each once."""

    def __init__(self) -> None:
        self._releases: list[Callable[[], None]] = []

    def add(self, release: Callable[[], None]) -> None:
        self._releases.append(release)

    def release(self) -> None:
        """Release everything, also after a release that fails; then raise the first failure."""
        first: AwqEdgeError | None = None
        while self._releases:
            try:
                self._releases.pop()()
            except AwqEdgeError as error:
                first = first or error
        if first is not None:
            raise first

    def release_quietly(self) -> None:
        """`release` without an error of its own, where another one is on its way."""
        with contextlib.suppress(AwqEdgeError):
            self.release()


class DeviceBuffer:
    """Bytes on the GPU. `typed` gives them a shape for libraries that read
    __cuda_array_interface__ (torch, CuPy)."""

    def __init__(self, layer: DeviceLayer, size: int, owned: Owned) -> None:
        """size: bytes, rounded up to the alignment. Raises ResourceError."""
        self.size = align(size)
        self.address = layer.allocate(self.size)
        owned.add(lambda: layer.free(self.address))

    def typed(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """This memory as an array; its bytes must suffice."""
        kind = np.dtype(dtype)
        assert int(np.prod(shape)) * kind.itemsize <= self.size
        return DeviceArray(self, tuple(shape), kind)


class DeviceArray:
    """A view of a buffer for other libraries; it keeps no memory alive."""

    def __init__(self, buffer: DeviceBuffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (buffer.address, False),
            "version": 3,
        }


def host_buffer(layer: DeviceLayer, size: int, owned: Owned) -> HostBytes:
    """Page-locked bytes: uint8 [size rounded up to the alignment], zeros."""
    array = layer.allocate_host(align(size))
    owned.add(lambda: layer.free_host(array))
    array[:] = 0
    return array


def align(size: int) -> int:
    """The next multiple of the alignment that TensorRT asks for, at least one of it."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT
