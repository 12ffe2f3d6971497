"""The choice of one option in each class whose losses sum to the least within a weight.

The multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger 2004, chapter 11), by dynamic
programming over weights: best[c] is the least loss of the classes so far in c cells.

    best'[c] = min over options of best[c - cells] + loss

A cell is the greatest common divisor of all differences between weights, so that nothing is
rounded and the choice is the best there is. Where that would be too many cells they are wider and
weights are rounded up: the choice still fits, and is the best of those that do so rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MAX_CELLS = 1 << 20  # times classes: bytes of the table that the choice is read back from


@dataclass(frozen=True)
class Option:
    weight: int
    loss: float


@dataclass(frozen=True)
class Selection:
    """options: the index of the chosen one, by class. exact: no weight was rounded."""

    options: tuple[int, ...]
    exact: bool


def select(
    classes: Sequence[Sequence[Option]], capacity: int, max_cells: int = _MAX_CELLS
) -> Selection:
    """One option of each class, their weights at most `capacity` together and their losses least.

    Of choices with equal losses the lighter one. Raises ValueError where the lightest options weigh
    more.
    """
    lightest = [min(option.weight for option in options) for options in classes]
    room = capacity - sum(lightest)
    if room < 0:
        raise ValueError(f"the lightest options weigh {sum(lightest)}, more than {capacity}")
    excess = [
        [option.weight - least for option in options]
        for options, least in zip(classes, lightest, strict=True)
    ]
    room = min(room, sum(map(max, excess)))
    divisor = math.gcd(*(each for weights in excess for each in weights)) or 1
    width = divisor * max(1, -(-room // (divisor * max_cells)))
    cells = room // width
    best = np.zeros(cells + 1)
    chosen = np.zeros((len(classes), cells + 1), np.uint8)
    sizes = [[-(-each // width) for each in weights] for weights in excess]
    for row, (options, taken) in enumerate(zip(classes, sizes, strict=True)):
        following = np.full(cells + 1, np.inf)
        for index in sorted(range(len(options)), key=lambda index: taken[index]):
            if taken[index] > cells:
                continue
            candidate = best[: cells + 1 - taken[index]] + options[index].loss
            place = following[taken[index] :]
            better = candidate < place
            place[better] = candidate[better]
            chosen[row, taken[index] :][better] = index
        best = following
    picked = []
    cell = int(best.argmin())
    for row in reversed(range(len(classes))):
        index = int(chosen[row, cell])
        picked.append(index)
        cell -= sizes[row][index]
    return Selection(tuple(reversed(picked)), width == divisor)
