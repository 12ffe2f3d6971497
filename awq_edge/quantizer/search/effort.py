"""What `--effort` means: how far method "refined" goes.

Each name is one row of numbers; docs/quantize.md says what they cost and what they gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# A grid beside a group's own: its scale as a multiple, and what is added to the zero point.
Neighbour = tuple[float, int]


@dataclass(frozen=True)
class Effort:
    """range_steps: of each end of a group's range, see `awq_edge.quantizer.search.ranges`. rounds:
    of refinement at most, and neighbours: grids that its sweeps try, see
    `awq_edge.quantizer.search.refine`. two_streams: statistics of the quantized blocks' stream
    beside the original's, see `awq_edge.quantizer.blocks.stream`. sequential: the linears of a
    block see what those before them in the block became, too. correction: a of
    `InputStatistics.target`, of two streams."""

    range_steps: int
    rounds: int
    neighbours: tuple[Neighbour, ...]
    two_streams: bool
    sequential: bool
    correction: float


_BESIDE = ((1.0, -1), (1.0, 1), (0.94, 0), (1.06, 0))

EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {
        "fast": Effort(
            range_steps=4,
            rounds=1,
            neighbours=(),
            two_streams=True,
            sequential=False,
            correction=0.25,
        ),
        "default": Effort(
            range_steps=10,
            rounds=3,
            neighbours=_BESIDE,
            two_streams=True,
            sequential=True,
            correction=0.5,
        ),
        "best": Effort(
            range_steps=10,
            rounds=10,
            neighbours=_BESIDE,
            two_streams=True,
            sequential=True,
            correction=0.5,
        ),
    }
)
