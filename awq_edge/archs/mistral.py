"""Mistral 7B, Ministral."""

from __future__ import annotations

from awq_edge.archs.base import Architecture

ARCHITECTURE = Architecture(
    model_type="mistral",
    examples="Mistral 7B, Ministral",
    window_rule="all_layers",
)
