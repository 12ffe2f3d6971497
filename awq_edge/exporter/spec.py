"""A recipe's choices for what an export makes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphSpec:
    """context: positions of the KV cache. lm_head_bits: 4 or 8, or 16 to leave it unquantized.
    takes_embeddings: instead of token ids, so that some of them may be an image's.
    """

    context: int
    lm_head_bits: int
    takes_embeddings: bool = False
