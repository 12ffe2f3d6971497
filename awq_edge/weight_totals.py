"""What weights of a bundle come to: bytes by part, and bytes that a decoded token reads.

One set of rules for weights that are about to be written and for those that follow from a config.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

# Where a weight counts in the manifest's part_bytes.
Part = Literal["embedding", "blocks", "lm_head", "tables"]
# Of these a token reads one row.
_READ_BY_ROW = ("embedding", "tables")


class Sized(Protocol):
    """nbytes: in the weight file. shape: as stored. read_share: the share of tokens whose
    computation reads it; below 1 in experts."""

    @property
    def part(self) -> Part: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def read_share(self) -> float: ...


def part_bytes(weights: Iterable[Sized]) -> dict[str, int]:
    """Bytes by part of the model; padding between weights in a file is not counted."""
    parts: dict[str, int] = {"embedding": 0, "blocks": 0, "lm_head": 0, "tables": 0}
    for weight in weights:
        parts[weight.part] += weight.nbytes
    return parts


def bytes_per_token(weights: Iterable[Sized]) -> int:
    """Bytes that decoding one token reads: of embedding and rotary tables one row, of experts those
    that a token is sent to."""
    return round(mean_bytes_per_token(weights))


def mean_bytes_per_token(weights: Iterable[Sized]) -> float:
    """As `bytes_per_token`, not rounded, so that parts can be added up."""
    total = 0.0
    for weight in weights:
        rows = weight.shape[0] if weight.part in _READ_BY_ROW else 1
        total += weight.nbytes // rows * weight.read_share
    return total
