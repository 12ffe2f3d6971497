"""Limits of runtime onnxruntime."""

from __future__ import annotations

from awq_edge.errors import ModelError
from awq_edge.exporter.checks import ExportedModel
from awq_edge.recipe.recipes import Recipe

# "head_size must be a multiple of 8": GroupQueryAttention of onnxruntime 1.32, when it runs.
_HEAD_MULTIPLE = 8


def check(recipe: Recipe, model: ExportedModel | None) -> None:
    """Raise ModelError for heads that its attention does not take."""
    if model is not None and model.decoder.head_size % _HEAD_MULTIPLE:
        raise ModelError(
            f"{model.path}: runtime onnxruntime cannot execute it: head size "
            f"{model.decoder.head_size} is not a multiple of {_HEAD_MULTIPLE}, which its attention "
            "wants"
        )
