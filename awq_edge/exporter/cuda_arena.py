"""Places of buffers in the arenas of a cuda program, by liveness: two share bytes where they are
never in use together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from awq_edge.runtime.backends.cuda.program import ITEM_BYTES, Buffer, Call, Dtype, Rows, View

_ALIGNMENT = 16  # of an address that kernels read and write


@dataclass(frozen=True)
class RowsShape:
    """The shape and type of a buffer."""

    rows: Rows
    width: int
    dtype: Dtype

    @property
    def row_bytes(self) -> int:
        return -(-self.width * ITEM_BYTES[self.dtype] // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Lifetime:
    """A buffer's bytes a row, and the first and the last call that uses it."""

    size: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def placed(
    shapes: Mapping[str, RowsShape],
    views: Mapping[str, View],
    calls: Sequence[Call],
    results: Sequence[str],
) -> tuple[dict[str, Buffer], dict[Rows, int]]:
    """Buffers with their places, and the bytes a row of each arena.

    results: buffers that are read when all calls are done.
    """
    used: dict[str, list[int]] = {name: [] for name in shapes}
    for number, call in enumerate(calls):
        for name in (*call.inputs.values(), *call.outputs.values()):
            view = views.get(name)
            whole = name if view is None else view.buffer
            if whole in used:
                used[whole].append(number)
    for name in results:
        used[name].append(len(calls))
    buffers: dict[str, Buffer] = {}
    arenas: dict[Rows, int] = {}
    kinds: tuple[Rows, ...] = ("tokens", "wanted")
    for rows in kinds:
        chosen = {name: shape for name, shape in shapes.items() if shape.rows == rows}
        lifetimes = [
            Lifetime(shape.row_bytes, min(used[name]), max(used[name]))
            for name, shape in chosen.items()
        ]
        offsets, arenas[rows] = assign(lifetimes)
        for (name, shape), offset in zip(chosen.items(), offsets, strict=True):
            buffers[name] = Buffer(rows=rows, width=shape.width, dtype=shape.dtype, offset=offset)
    return buffers, arenas


def assign(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets of buffers, in bytes a row, and the bytes of all: the first gap that is large enough,
    the largest buffer first."""
    offsets = [0] * len(lifetimes)
    done: list[int] = []
    total = 0
    for index in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, i)):
        wanted, begin = lifetimes[index], 0
        taken = sorted(
            (offsets[other], lifetimes[other].size)
            for other in done
            if lifetimes[other].overlaps(wanted)
        )
        for offset, size in taken:
            if begin + wanted.size <= offset:
                break
            begin = max(begin, offset + size)
        offsets[index] = begin
        done.append(index)
        total = max(total, begin + wanted.size)
    return offsets, total
