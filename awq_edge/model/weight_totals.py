"""Totals of a bundle's weights: bytes by part, and bytes that a decoded token reads.

One set of rules for weights that are about to be written and for those that follow from a config.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Protocol

from awq_edge.model.archs import Decoder

# Where a weight counts in the manifest's part_bytes.
Part = Literal["embedding", "blocks", "lm_head", "tables"]
# Of these a token reads one row.
_READ_BY_ROW = ("embedding", "tables")


def count_parameters(decoder: Decoder, *, was_tied: bool) -> int:
    """Parameters of the unquantized model, a tied output layer counted once, with the embedding.

    was_tied: the output layer is stored beside the embedding that it was made from, and config.json
    says no more that they are one (`Checkpoint.output_layer_was_tied` tells it by the weights).
    """
    total = sum(math.prod(shape) for shape in decoder.weight_shapes().values())
    head = f"{decoder.architecture.lm_head}.weight"
    copy = decoder.weight_shapes().get(head) if was_tied else None
    return total - (0 if copy is None else math.prod(copy))


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
    """Bytes that decoding one token reads: one row of embedding and rotary tables, and the experts
    that a token is sent to."""
    return round(mean_bytes_per_token(weights))


def mean_bytes_per_token(weights: Iterable[Sized]) -> float:
    """The bytes of `bytes_per_token`, not rounded, so that parts can be added up."""
    total = 0.0
    for weight in weights:
        rows = weight.shape[0] if weight.part in _READ_BY_ROW else 1
        total += weight.nbytes // rows * weight.read_share
    return total
