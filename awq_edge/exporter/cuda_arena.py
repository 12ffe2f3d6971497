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
    """Offsets of buffers, in bytes a row, and the bytes of all.

    Each goes into the first gap that is large enough; the largest goes first, or the one that takes
    most bytes for most calls, whichever order needs less.
    """

    def size(index: int) -> tuple[int, int]:
        return -lifetimes[index].size, index

    def area(index: int) -> tuple[int, int]:
        each = lifetimes[index]
        return -each.size * (each.last - each.first + 1), index

    orders = (sorted(range(len(lifetimes)), key=key) for key in (size, area))
    return min((_first_fit(lifetimes, order) for order in orders), key=lambda found: found[1])


def _first_fit(lifetimes: Sequence[Lifetime], order: Sequence[int]) -> tuple[list[int], int]:
    offsets, total = [0] * len(lifetimes), 0
    done: list[int] = []
    for index in order:
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
