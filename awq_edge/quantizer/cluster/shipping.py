"""A value with tensors in it, as one small pickle and the bytes of its tensors beside it.

    value ─ pack ─► pickle, tensors ─ wire ─► pickle, types and bytes ─ unpack ─► value

Tensors travel apart, each once, so that an object store can share them between tasks and processes
can map them; wherever they were, they arrive on the device that `unpack` is given.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# A tensor up to this many bytes travels inside the pickle: an object of its own costs more.
_INLINE_BYTES = 1 << 14
_PROBE = 4096  # elements that tell most tensors that do not fit 16 bits

# The name of a torch dtype, and the tensor's bytes: uint8 [nbytes].
Wire = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Packed:
    """tensors: those that travel beside the pickle, as they were in the value."""

    blob: bytes
    tensors: tuple[torch.Tensor, ...]


def pack(value: Any) -> Packed:
    """Take the tensors out of a value that can be pickled."""
    file = io.BytesIO()
    pickler = _Packer(file)
    pickler.dump(value)
    return Packed(file.getvalue(), tuple(pickler.tensors))


def unpack(blob: bytes, wires: Sequence[Wire], device: torch.device) -> Any:
    """The value of `pack`, each tensor on `device`, contiguous, in memory of its own.

    wires: of the tensors beside the pickle, in their order.
    """
    return _Unpacker(io.BytesIO(blob), wires, device).load()


def wire(tensor: torch.Tensor) -> Wire:
    """A tensor as it travels: on the CPU, float32 in 16 bits where that loses nothing.

    Weights that a checkpoint holds in 16 bits do; they are most of what travels.
    """
    plain = _narrowest(tensor.detach()).cpu().contiguous()
    name = str(plain.dtype).removeprefix("torch.")
    return name, plain.reshape(-1).view(torch.uint8).numpy()


def _narrowest(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    for dtype in (torch.bfloat16, torch.float16):
        probe = tensor.reshape(-1)[:_PROBE]
        if torch.equal(probe.to(dtype).float(), probe):
            narrow = tensor.to(dtype)
            if torch.equal(narrow.float(), tensor):
                return narrow
    return tensor


def _from_wire(
    sent: Wire, dtype: torch.dtype, shape: Sequence[int], device: torch.device
) -> torch.Tensor:
    name, array = sent
    with warnings.catch_warnings():
        # Read-only: it is only read, and copied.
        warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")
        plain = torch.from_numpy(array)
    stored: torch.dtype = getattr(torch, name)
    # A new tensor, aligned as torch aligns: the store's memory goes when the task ends.
    there = plain.to(device, copy=True).view(stored).reshape(tuple(shape))
    return there.to(dtype)


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        name = str(value.dtype).removeprefix("torch.")
        if value.nbytes <= _INLINE_BYTES:
            stored, array = wire(value)
            return name, tuple(value.shape), (stored, array.tobytes())
        # By identity, which holds while the pickler keeps the tensor.
        if id(value) not in self._places:
            self._places[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return name, tuple(value.shape), self._places[id(value)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, wires: Sequence[Wire], device: torch.device) -> None:
        super().__init__(file)
        self._wires = wires
        self._device = device
        self._found: dict[int, torch.Tensor] = {}

    def persistent_load(self, saved: Any) -> torch.Tensor:
        name, shape, place = saved
        dtype: torch.dtype = getattr(torch, name)
        if isinstance(place, tuple):
            stored, content = place
            sent = stored, np.frombuffer(content, dtype=np.uint8)
            return _from_wire(sent, dtype, shape, self._device)
        if place not in self._found:
            self._found[place] = _from_wire(self._wires[place], dtype, shape, self._device)
        return self._found[place]
