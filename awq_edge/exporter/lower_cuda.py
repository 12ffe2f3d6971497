"""The cuda lowering: a list of calls for the kernels of `plugins/`, and no graph."""

from __future__ import annotations

from awq_edge.exporter.checkpoint_sources import CheckpointSources
from awq_edge.exporter.checks_cuda import lacking_calls, require_operations
from awq_edge.exporter.emit_cuda import emit_cuda
from awq_edge.exporter.lowered import Lowered
from awq_edge.exporter.spec import GraphSpec
from awq_edge.exporter.writer import WeightPlan
from awq_edge.model.checkpoint import Checkpoint
from awq_edge.program.build import checkpoint_program
from awq_edge.program.storage import Storage, cuda_form
from awq_edge.recipe.recipes import Recipe

MODEL_FILE, WEIGHTS_FILE = "model.json", "model.weights"


def build(checkpoint: Checkpoint, spec: GraphSpec, recipe: Recipe) -> Lowered:
    """The program of a checkpoint. Raises ModelError for operations that the runtime lacks."""
    program = checkpoint_program(checkpoint, spec.lm_head_bits)
    storage = Storage(cuda_form(recipe, program), CheckpointSources(checkpoint))
    emitted = emit_cuda(program, storage, spec.context)
    lacking = lacking_calls(emitted.program)
    require_operations(lacking, checkpoint.path, checkpoint.decoder.model_type)

    def render(plan: WeightPlan) -> bytes:
        return (emitted.placed(plan.offsets).model_dump_json(indent=1) + "\n").encode()

    arenas = {str(rows): size for rows, size in emitted.program.arenas.items()}
    return Lowered(MODEL_FILE, WEIGHTS_FILE, emitted.weights, render, arena_bytes=arenas)
