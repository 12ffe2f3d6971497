"""Writing a graph: the weight file piece by piece, hashed as it is written, then the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from awq_edge.artifacts.directories import FileEntry
from awq_edge.program.weights import Weight, bytes_per_token, part_bytes

# Pages: onnxruntime maps the file, and the system maps whole pages.
ALIGNMENT = 4096
# (bytes written, bytes in all, what is being written)
Observer = Callable[[int, int, str], None]


@dataclass(frozen=True)
class WeightPlan:
    """The place of each weight in the weight file. offsets: bytes, by name."""

    weights: tuple[Weight, ...]
    offsets: dict[str, int]
    size: int

    @classmethod
    def of(cls, weights: Sequence[Weight]) -> WeightPlan:
        """Weights in the order of execution, each on a page of its own."""
        offsets, end = {}, 0
        for weight in weights:
            offsets[weight.name] = -(-end // ALIGNMENT) * ALIGNMENT
            end = offsets[weight.name] + weight.nbytes
        return cls(tuple(weights), offsets, end)

    def part_bytes(self) -> dict[str, int]:
        """Bytes by part of the model, the padding between weights not counted."""
        return part_bytes(self.weights)

    def bytes_per_token(self) -> int:
        """Bytes that decoding one token reads, see `awq_edge.program.weights`."""
        return bytes_per_token(self.weights)


def write_weights(plan: WeightPlan, path: Path, observer: Observer | None = None) -> FileEntry:
    """Evaluate the weights into one file. Returns its size and sha256."""
    digest = hashlib.sha256()
    written = 0
    with open(path, "wb", buffering=0) as file:
        for weight in plan.weights:
            padding = bytes(plan.offsets[weight.name] - written)
            file.write(padding)
            digest.update(padding)
            written += len(padding)
            begin = written
            for piece in weight.pieces():
                view = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
                digest.update(view)
                written += len(view)
                while len(view):
                    view = view[file.write(view) or 0 :]
                if observer is not None:
                    observer(written, plan.size, "writing weights")
            assert written - begin == weight.nbytes, weight
    return FileEntry(size=written, sha256=digest.hexdigest())


def place_weights(model: onnx.ModelProto, plan: WeightPlan, file_name: str) -> None:
    """Tell the model's external constants where their data lies."""
    by_name = {weight.name: weight for weight in plan.weights}
    for proto in model.graph.initializer:
        weight = by_name.get(proto.name)
        if weight is None:
            continue
        del proto.external_data[:]
        place = {
            "location": file_name,
            "offset": str(plan.offsets[weight.name]),
            "length": str(weight.nbytes),
        }
        for key, value in place.items():
            proto.external_data.add(key=key, value=value)
