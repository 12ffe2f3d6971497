"""What models need that the canonical graph may not have."""

from __future__ import annotations

from awq_edge.exporter.checks import beyond_llama
from awq_edge.model.archs import Decoder

# What the canonical graph has no nodes for yet, in the words of `beyond_llama`. A vision-language
# model's graph takes text; of images, their embeddings (docs/graph.md).
NOT_YET: frozenset[str] = frozenset()


def unsupported(decoder: Decoder) -> str | None:
    """What a model needs and the canonical graph does not have, in words; None where it has
    everything."""
    return ", ".join(what for what in beyond_llama(decoder) if what in NOT_YET) or None
