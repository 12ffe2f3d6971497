"""What runtime cuda cannot execute."""

from __future__ import annotations

from awq_edge.errors import ModelError
from awq_edge.exporter.checks import ExportedModel, beyond_llama, packing_problems
from awq_edge.kernels.interface import HEAD_SIZES
from awq_edge.recipe.recipes import Recipe

_VECTOR = 8  # activations that the kernels load at a time


def check(recipe: Recipe, model: ExportedModel | None) -> None:
    """Raise ModelError for what a program has no place for, and what no kernel exists for."""
    if model is None:
        return
    decoder, problems = model.decoder, []
    extras = beyond_llama(decoder)
    if extras:
        raise ModelError(
            f"{model.path}: runtime cuda does not have yet what its model_type "
            f"'{decoder.model_type}' needs: {', '.join(extras)}; export it with "
            "--runtime onnxruntime"
        )
    if decoder.head_size not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        problems.append(f"head size {decoder.head_size} is not one of {sizes}")
    for what, size in (
        ("hidden_size", decoder.hidden_size),
        ("intermediate_size", decoder.intermediate_size),
    ):
        if size % _VECTOR:
            problems.append(f"{what} {size} is not a multiple of {_VECTOR}")
    problems += packing_problems(model)
    if problems:
        raise ModelError(
            f"{model.path}: no CUDA kernel exists for it: {'; '.join(problems)}; export it "
            "with --runtime onnxruntime"
        )
