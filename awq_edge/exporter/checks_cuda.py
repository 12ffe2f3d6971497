"""Limits of runtime cuda: an allow-list, the operations that it has.

A model is emitted as it would be for an export, without its weights; the calls say what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from awq_edge.errors import ModelError
from awq_edge.exporter.checks import ExportedModel
from awq_edge.exporter.emit_cuda import emit_cuda
from awq_edge.kernels.interface import GROUP_SIZES
from awq_edge.model.archs import Decoder
from awq_edge.model.w4a16 import NumberFormat
from awq_edge.program.build import build_program
from awq_edge.program.formats import Formats
from awq_edge.program.program import Program, Quantized
from awq_edge.program.sources import PlannedSources
from awq_edge.program.storage import Storage, cuda_form
from awq_edge.recipe.recipes import Recipe
from awq_edge.runtime.backends.cuda.executor import sizes_of
from awq_edge.runtime.backends.cuda.operations import OPERATIONS
from awq_edge.runtime.backends.cuda.program import CudaProgram


def check(recipe: Recipe, model: ExportedModel | None) -> None:
    """Raise ModelError for operations that the runtime lacks, and sizes without a kernel."""
    if model is None:
        return
    decoder = model.decoder
    program = build_program(decoder, _formats(model, recipe), _distinct_layers(decoder))
    require_operations(lacking_operations(program, recipe), model.path, decoder.model_type)
    problems = _size_problems(program, recipe)
    if problems:
        raise ModelError(
            f"{model.path}: no CUDA kernel exists for it: {'; '.join(problems)}; export it "
            "with --runtime onnxruntime"
        )


def require_operations(lacking: Sequence[str], path: Path, model_type: str) -> None:
    """Raise ModelError where a model needs operations that the runtime lacks."""
    if lacking:
        raise ModelError(
            f"{path}: runtime cuda has no operation yet for {', '.join(lacking)}, which its "
            f"model_type '{model_type}' needs; export it with --runtime onnxruntime"
        )


def lacking_calls(program: CudaProgram) -> list[str]:
    """The operations of calls that the runtime does not have, in the order of execution."""
    lacking = (each.operation for each in program.calls if each.operation not in OPERATIONS)
    return list(dict.fromkeys(lacking))


def lacking_operations(program: Program, recipe: Recipe) -> list[str]:
    """The operations of a program that the runtime does not have, in the order of execution."""
    lacking = lacking_calls(_emitted(program, recipe))
    context = recipe.export.context
    for _, rope in program.rotations:
        # Two tables, of which the length of a text chooses one.
        if rope.kind == "longrope" and context > (rope.original_max_positions or 0):
            lacking.append(f"longrope beyond {rope.original_max_positions} positions")
    return lacking


def _size_problems(program: Program, recipe: Recipe) -> list[str]:
    emitted = _emitted(program, recipe)
    problems: dict[str, str] = {}  # of the first call that has it
    for call in emitted.calls:
        problem = OPERATIONS[call.operation].limits(sizes_of(call, emitted))
        if problem is not None:
            problems.setdefault(problem, f"{problem} ({call.name})")
    return list(problems.values())


def _emitted(program: Program, recipe: Recipe) -> CudaProgram:
    storage = Storage(cuda_form(recipe, program), PlannedSources())
    return emit_cuda(program, storage, recipe.export.context).program


def _distinct_layers(decoder: Decoder) -> tuple[int, ...]:
    """A layer of each kind, with and without experts."""
    kinds = {decoder.has_experts(layer): layer for layer in reversed(range(decoder.num_layers))}
    return tuple(sorted(kinds.values()))


def _formats(model: ExportedModel, recipe: Recipe) -> Formats:
    """The formats that a model has; of one that is to be quantized, groups that kernels have."""
    planned = NumberFormat(4, min(GROUP_SIZES), "asymmetric")
    rounds = not model.has_quantized and recipe.quantization.method != "none"

    def of(name: str, out_features: int, in_features: int) -> Quantized | None:
        if rounds:
            return Quantized(planned, True) if in_features % planned.group_size == 0 else None
        return Quantized(model.linear_format(name), True) if model.is_quantized(name) else None

    head = None if rounds else of(model.decoder.architecture.lm_head, 0, 0)
    return Formats(None, of, head, stored_lm_head=head is not None)
